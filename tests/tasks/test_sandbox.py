"""Programs that mean harm: each ends within its limits, is judged wrong, and leaves the machine as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from swiftune.tasks import sandbox
from swiftune.tasks.sandbox import Limits, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

LIMITS = Limits(seconds=2)


def isolated() -> bool:
    return os.geteuid() == 0 or subprocess.run(["unshare", "--user", "--net", "true"], check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(sys.platform == "linux" and not isolated(), reason="no namespaces here")

HARM = {
    "an endless loop": "while True: pass",
    "a long sleep": "import time; time.sleep(1000)",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
    "a gigabyte of output": "import sys\nfor _ in range(1 << 14): sys.stdout.write('x' * 65536)",
    "a gigabyte of memory": "x = bytearray(1 << 30)",
    "a list without end": "x = []\nwhile True: x.append(' ' * 1_000_000)",
    "a large file": "open('big', 'wb').write(b'x' * (32 << 20))",
    "a full disk": "for i in range(99): open(f'{i}', 'wb').write(b'x' * (8 << 20))",
    "many open files": "files = [open('program.py') for _ in range(1000)]",
    "leaving early": "import os; os._exit(0)",
    "leaving politely": "import sys; sys.exit(0)",
    "killing everybody": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "killing its parent": "import os; os.kill(os.getppid(), 9); os.abort()",
    "killing its group": "import os, signal; os.killpg(0, signal.SIGKILL)",
    "not valid Python": "def f(:",
    "a string left open": "x = '''",
    "half a character": "x = '\ud800'",
}


def strays() -> set[int]:
    """Processes that run a sandbox's program."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if any("program.py" in word or "sandbox_inside" in word for word in process.info["cmdline"] or ()):
            found.add(process.pid)
    return found


@pytest.mark.parametrize("program", HARM.values(), ids=HARM.keys())
def test_harm_is_contained(program: str) -> None:
    began, before = time.monotonic(), psutil.virtual_memory().available
    outcome = run(program, LIMITS)
    assert not outcome.passed
    assert outcome.why
    assert time.monotonic() - began < 30
    assert before - psutil.virtual_memory().available < 6 << 30
    assert run("assert 1 + 1 == 2").passed


def test_nothing_is_left_running_or_lying_about() -> None:
    folders = set(Path(tempfile.gettempdir()).glob("swift-sandbox-*"))
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)"
    )
    before = strays()
    run(daemon, LIMITS)
    run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", LIMITS)
    deadline = time.monotonic() + 5
    while strays() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not strays() - before
    assert set(Path(tempfile.gettempdir()).glob("swift-sandbox-*")) <= folders


@needs_namespaces
def test_nothing_outside_is_seen_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    monkeypatch.setenv("HF_TOKEN", "secret")
    for target in (secret, tmp_path / "new", Path("/usr/new"), Path("/dev/shm/new"), Path.home() / "new"):
        assert not run(f"open({str(target)!r}, 'a').write('y')", LIMITS).passed
        assert not (target.exists() and target != secret)
    assert secret.read_text() == "x"
    assert not run(f"open({str(secret)!r}).read()", LIMITS).passed
    assert run("import os; assert 'HF_TOKEN' not in os.environ and os.listdir('.') == ['program.py']", LIMITS).passed
    assert run("import os; assert os.getuid() != 0 and not os.path.exists('/proc/1')", LIMITS).passed


@needs_namespaces
def test_there_is_no_network() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        attempt = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        assert "unreachable" in run(attempt, LIMITS).why


@needs_namespaces
def test_no_way_leads_out_of_the_new_root() -> None:
    escape = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000)  # a user namespace in which it would be root
os.mkdir('jail'); here = os.open('.', os.O_RDONLY)
libc.chroot(b'jail'); os.fchdir(here)
for _ in range(64): os.chdir('..')
libc.chroot(b'.')
libc.mount(b'none', b'/usr', None, 32 | 4096, None)
assert not os.path.exists('/proc/self') and not os.path.exists('/root') and not os.path.exists('/home')
open('/usr/escaped', 'w')
"""
    outcome = run(escape, LIMITS)
    assert not outcome.passed
    assert not Path("/usr/escaped").exists()


def test_usual_programs_run() -> None:
    code = """
import collections, decimal, functools, hashlib, heapq, itertools, math, random, re, string, typing
assert hashlib.md5(b'').hexdigest() == 'd41d8cd98f00b204e9800998ecf8427e'
print('x' * 1000)
open('mine.txt', 'w').write('ok')
assert open('mine.txt').read() == 'ok'
"""
    assert run(code).passed


def test_several_run_at_once() -> None:
    outcomes: list[sandbox.Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(run("x = 1"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.passed for outcome in outcomes] == [True] * 4


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can be put into such a container")
def test_where_the_kernel_gives_no_namespaces_nothing_runs_as_root() -> None:
    """As in a container: root, but without the right to make namespaces."""
    script = (
        "from swiftune.tasks.sandbox import Limits, run\nfrom swiftune.errors import RunError\n"
        "try: print(run('import os; assert os.getuid() != 0').passed, run('while True: pass', Limits(1)).passed)\n"
        "except RunError as error: print('refused', error)"
    )
    bounds = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*bounds, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if done.stdout.startswith("refused"):
        assert "only root can read" in done.stdout
    else:
        assert done.stdout.split() == ["True", "False"]
        assert "within limits on time" in done.stderr.replace("\n", " ")
