"""Signals as exceptions: raised where they can be, and the second one left to the system."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swiftune.runtime.stop import StopRequest, Terminated, exit_code, heeded

BOTH = pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])


def run(script: str, here: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import signal, time\nfrom swiftune.runtime.stop import *\n" + script],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@BOTH
def test_a_module_that_is_being_loaded_is_loaded_to_its_end(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        f"import signal, time\nsignal.raise_signal({int(how)})\ntime.sleep(.1)\nwhole = 1\n"
    )
    script = """
with heeded():
    try:
        import slow
        time.sleep(10)
    except KeyboardInterrupt as asked:
        print(slow.whole, exit_code(asked))
"""
    assert run(script, tmp_path).stdout == f"1 {128 + how}\n"


@BOTH
@pytest.mark.parametrize("context", ["heeded()", "StopRequest()"])
def test_a_second_one_ends_the_process(how: signal.Signals, context: str, tmp_path: Path) -> None:
    script = f"""
with {context}:
    try:
        signal.raise_signal({int(how)})
        time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    print("first", flush=True)
    signal.raise_signal({int(how)})
    print("second")
"""
    done = run(script, tmp_path)
    assert (done.stdout, done.returncode) == ("first\n", -how)
    assert "Traceback" not in done.stderr


def test_what_was_heard_before_is_heard_again() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with heeded(), StopRequest() as stop:
        assert not stop
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_exit_codes_are_those_of_shells() -> None:
    assert (exit_code(KeyboardInterrupt()), exit_code(Terminated())) == (130, 143)


@BOTH
def test_what_may_not_be_interrupted_is_done_first(how: signal.Signals, tmp_path: Path) -> None:
    """Also where another thread, which does not block signals, is given it."""
    script = f"""
import os, threading
threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
with heeded():
    try:
        with unheard():
            os.kill(os.getpid(), {int(how)})
            time.sleep(.2)
            print("done")
        print("not interrupted")
    except KeyboardInterrupt as asked:
        print(exit_code(asked))
"""
    assert run(script, tmp_path).stdout.split() == ["done", str(128 + how)]
