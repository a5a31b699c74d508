"""Programs that a model wrote, run where they can do no harm: in a process of their own, in a world of their own.

The program gets: no network, no file of the machine but Python's and the system's libraries (read only), a folder in
memory that is thrown away, no environment, no other user's processes in sight, and limits on time, memory, files,
processes and output. ``sandbox_inside`` says how. Where the kernel gives no namespaces (inside many containers, and on
other systems than Linux) only the limits hold, and that is said.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from swiftune.errors import RunError
from swiftune.runtime.console import warn

_INSIDE = Path(__file__).with_name("sandbox_inside.py")
_REPORT_BYTES = 4096
_GRACE = 5.0
"""Seconds beyond the limit after which whoever watches the program is ended too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: int = 10
    """Of the clock, and of a processor."""
    memory_bytes: int = 512 << 20
    """Addresses of one process."""
    processes: int = 8
    files: int = 64
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    output_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """It ran to its last line, and ended well."""
    why: str = ""
    """If not: its last line of output, or the limit it met."""


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Runs Python code.

    Only a program whose very last line is reached has passed: leaving early, even with exit code 0, is none.

    Raises:
        RunError: programs cannot be run here without danger, or at all.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    # On a line of its own, at the left: no open block or string of the program can swallow it unnoticed.
    code = f"{program}\n\n__import__('os').write(3, b'{token}')\n"
    try:
        data = code.encode()
    except UnicodeEncodeError:
        return Outcome(False, "it is not valid Unicode")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="swift-sandbox-", ignore_cleanup_errors=True))
        report_read, report_write = os.pipe()
        stack.callback(os.close, report_read)
        try:
            process = _launch(limits, folder, report_write)
        finally:
            os.close(report_write)
        try:
            output, too_much = _talk(process, data, limits)
            if not too_much:
                process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            output, too_much = b"", False
        finally:
            _end(process)
        report = os.read(report_read, _REPORT_BYTES).decode(errors="replace")
    return _judged(report, token, process.returncode, output, too_much, limits)


def _launch(limits: Limits, folder: str, report: int) -> subprocess.Popen[bytes]:
    python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    told = json.dumps({**asdict(limits), "folder": folder, "prefix": sys.base_prefix})
    # Descriptor 3 is part of the agreement, and subprocess keeps numbers as they are: a shell-free way to rename one.
    rename = "import os,sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
    command = [python, "-I", "-S", "-c", rename, str(report), python, "-I", "-S", str(_INSIDE), told]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={},
        cwd=folder,
        pass_fds=(report,),
        start_new_session=True,
    )


def _talk(process: subprocess.Popen[bytes], data: bytes, limits: Limits) -> tuple[bytes, bool]:
    """Hands the program over and reads what it says, up to the limit. Returns that, and whether there was more."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(data)
        process.stdin.close()
    except BrokenPipeError:
        pass
    output = b""
    deadline = time.monotonic() + limits.seconds + _GRACE
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(output) <= limits.output_bytes and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                block = os.read(process.stdout.fileno(), 65536)
                if not block:
                    return output, False
                output += block
    return output, len(output) > limits.output_bytes


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    process.wait()


def _judged(report: str, token: str, code: int, output: bytes, too_much: bool, limits: Limits) -> Outcome:
    state, _, rest = report.partition("\n")
    if state.startswith("refused"):
        raise RunError(
            f"Programs cannot be run here without danger: {state.removeprefix('refused: ')}.",
            "Run swift eval as another user than root, or where the kernel allows namespaces.",
        )
    if state.startswith("exposed"):
        warn(
            f"This machine gives no namespaces ({state.removeprefix('exposed: ')}): programs of the model run within "
            "limits on time, memory and processes, but with the network and with files that this user can write."
        )
    if too_much:
        return Outcome(False, f"wrote more than {limits.output_bytes >> 10} KiB")
    if code == 0 and rest == token:
        return Outcome(True)
    if code in (124, -signal.SIGKILL, 256 - signal.SIGKILL, 256 - signal.SIGXCPU):
        return Outcome(False, f"ran longer than {limits.seconds} s, or was killed")
    lines = output.decode(errors="replace").strip().splitlines()
    return Outcome(False, lines[-1][:300] if code and lines else f"ended before its last line (exit code {code})")
