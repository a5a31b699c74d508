"""Runs one Python program where it can do no harm. A script of its own, started by ``sandbox``: standard library only.

    python -I -S sandbox_inside.py '{"seconds": 10, ...}'  < program

The process that starts here makes a new world (see ``_namespaces``), starts the first process of it, and waits. That
process builds a root of read-only system folders and one small folder in memory, and starts the program as a user
without rights. When it ends, the kernel ends every process of that world.

File descriptor 3 takes what the caller has to know: a line ``isolated`` or ``exposed: why`` or ``refused: why``, and
then what the program writes there.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

REPORT = 3
STRANGER = 1_500_000_000
"""User numbers from here on belong to nobody; one for each program, so that its processes are counted by themselves."""
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/nix/store", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")

# linux/sched.h, linux/mount.h, linux/prctl.h; mount_setattr has one number on all architectures, pivot_root has not.
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 4096, 16384, 1 << 18, 2
_MOUNT_SETATTR, _PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
_AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY = -100, 0x8000, 1
_PR_DEATH_SIGNAL, _PR_NO_NEW_PRIVILEGES, _PR_SUBREAPER = 1, 38, 36

_libc: Any = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """See above. Exits as the program did."""
    limits: dict[str, Any] = json.loads(sys.argv[1])
    program = sys.stdin.buffer.read()
    _die_with_parent()
    user = STRANGER + os.getpid() if os.geteuid() == 0 else None
    try:
        _namespaces(user)
        isolated = True
    except (OSError, AttributeError) as error:
        isolated = False
        _fall_back(user, limits, error)
    child = os.fork()
    if child == 0:
        if isolated:
            _first_process(limits, program, user)
        _start(limits, _write_program(limits["folder"], program, user), user)
    deadline = time.monotonic() + limits["seconds"]
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    _end_all(child, user if not isolated else None)
    os._exit(_code(status) if done else 124)


# -- a world of its own -----------------------------------------------------------------------------------------------


def _namespaces(user: int | None) -> None:
    """Leaves the network, the processes, the mounts and (where we are not root already) the users of the machine."""
    here = os.getuid(), os.getgid()
    flags = _NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET
    if os.uname().machine not in _PIVOT_ROOT:
        raise OSError(0, f"nothing is known of {os.uname().machine}")
    _call("unshare", flags if user is not None else flags | _NEW_USER)
    if user is None:  # the rights that come with it are lost when the program is started: 1000 is not 0
        for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {here[0]} 1"), ("gid_map", f"1000 {here[1]} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _call("mount", b"none", b"/", None, _REC | _PRIVATE, None)


def _first_process(limits: dict[str, Any], program: bytes, user: int | None) -> NoReturn:
    """Builds the root, starts the program in it, and takes care of its orphans."""
    _die_with_parent()
    try:
        _new_root(limits)
        path = _write_program("/work", program, user)
    except OSError as error:
        _report(f"refused: {error}")
        os._exit(125)
    _report("isolated")
    child = os.fork()
    if child == 0:
        _start(limits, path, user)
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(_code(status))


def _new_root(limits: dict[str, Any]) -> None:
    root: str = limits["folder"]
    size = f"size={limits['disk_bytes']},nr_inodes=4096,mode=755".encode()
    _call("mount", b"tmpfs", root.encode(), b"tmpfs", _NOSUID | _NODEV, size)
    for path in dict.fromkeys((*SYSTEM, limits["prefix"])):
        if os.path.lexists(path) and not os.path.lexists(root + path):
            _show(path, root + path)
    for folder in ("/work", "/tmp"):  # noqa: S108 - of the new root
        os.mkdir(root + folder)
        os.chmod(root + folder, 0o777)  # noqa: S103 - likewise
    os.chdir(root)
    _system_call(_PIVOT_ROOT[os.uname().machine], b".", b".")  # the old root now lies over the new one
    _call("umount2", b".", _DETACH)
    os.chdir("/work")


def _show(path: str, target: str) -> None:
    """Makes ``path`` of the old root visible in the new one, read only, all that is mounted below it too."""
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _call("mount", path.encode(), target.encode(), None, _BIND | _REC, None)
    attributes = (ctypes.c_uint64 * 4)(_ATTR_READ_ONLY, 0, 0, 0)
    where = ctypes.c_int(_AT_FDCWD), target.encode(), ctypes.c_uint(_AT_RECURSIVE)
    _system_call(_MOUNT_SETATTR, *where, attributes, ctypes.c_size_t(ctypes.sizeof(attributes)))


# -- the program ------------------------------------------------------------------------------------------------------


def _write_program(folder: str, program: bytes, user: int | None) -> str:
    path = os.path.join(folder, "program.py")
    with open(path, "wb") as file:
        file.write(program)
    if user is not None:
        os.chown(folder, user, user)
        os.chmod(path, 0o644)
    return path


def _start(limits: dict[str, Any], path: str, user: int | None) -> NoReturn:
    try:
        os.chdir(os.path.dirname(path))
        os.setsid()
        for name, value in (
            (resource.RLIMIT_AS, limits["memory_bytes"]),
            (resource.RLIMIT_CPU, limits["seconds"]),
            (resource.RLIMIT_FSIZE, limits["file_bytes"]),
            (resource.RLIMIT_NOFILE, limits["files"]),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(name, (value, value))
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
        if sys.platform == "linux":
            _call("prctl", _PR_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        environment = {"PATH": "/usr/bin:/bin", "HOME": os.getcwd(), "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-s", "-S", "-B", path], environment)  # noqa: S606
    except (OSError, ValueError) as error:
        print(f"the program could not be started: {error}", file=sys.stderr, flush=True)
    os._exit(125)


# -- where the kernel gives no such world -----------------------------------------------------------------------------


def _fall_back(user: int | None, limits: dict[str, Any], error: Exception) -> None:
    """Goes on with limits alone, unless the program would be root's: then nothing would stop it."""
    why = getattr(error, "strerror", None) or str(error)
    if sys.platform == "linux":
        _call("prctl", _PR_SUBREAPER, 1, 0, 0, 0)
    if user is not None and not _reachable(user, (sys.executable, limits["folder"])):
        _report(f"refused: {why}, and only root can read {sys.executable}")
        os._exit(125)
    _report(f"exposed: {why}")


def _reachable(user: int, paths: tuple[str, ...]) -> bool:
    """Whether a user can get to all of them; asked by a child that has become that user."""
    child = os.fork()
    if child == 0:
        os.chown(paths[-1], user, user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os._exit(int(not all(os.access(path, os.R_OK | os.X_OK) for path in paths)))
    return os.waitpid(child, 0)[1] == 0


def _end_all(child: int, user: int | None) -> None:
    """Ends the program and what it left behind. Of a world of its own, its first process is enough."""
    _kill(child)
    if user is not None:
        killer = os.fork()
        if killer == 0:
            os.setresuid(user, user, user)
            os.kill(-1, signal.SIGKILL)
            os._exit(0)
        os.waitpid(killer, 0)
    for _ in range(10_000):  # orphans come to us, a generation at a time
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                children = file.read().split()
        except OSError:
            return
        for each in children:
            _kill(int(each))
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        return


# -- small parts ------------------------------------------------------------------------------------------------------


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _call("prctl", _PR_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _report(line: str) -> None:
    os.write(REPORT, f"{line}\n".encode())


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status) & 255


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _system_call(number: int, *arguments: Any) -> None:
    if _libc.syscall(ctypes.c_long(number), *arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")


if __name__ == "__main__":
    main()
