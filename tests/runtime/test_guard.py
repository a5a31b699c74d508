"""What a guarded command started is gone once its starter is, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from swiftune.runtime import guard

# A command with a child of its own, both deaf to SIGINT; it says when it is there.
COMMAND = ["sh", "-c", "trap '' INT; sleep 600 & echo $!; wait"]


def guarded(folder: Path, *command: str) -> list[str]:
    return [sys.executable, "-I", guard.__file__, str(folder), *command]


def gone(*processes: psutil.Process) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "needed").mkdir()
    (tmp_path / "needed" / "socket").touch()
    return tmp_path / "needed"


def test_it_ends_when_the_pipe_closes(folder: Path) -> None:
    process = subprocess.Popen(guarded(folder, *COMMAND), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None  # only the pipe counts
    process.communicate()
    assert gone(grandchild)
    assert not folder.exists()


def test_it_ends_when_its_starter_is_killed(folder: Path) -> None:
    starter = f"""
import subprocess, time
subprocess.Popen({guarded(folder, *COMMAND)!r}, stdin=subprocess.PIPE)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    started = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert gone(grandchild, *started)
    assert not folder.exists()


def test_a_command_that_ends_by_itself_takes_its_children_along(folder: Path) -> None:
    process = subprocess.Popen(
        guarded(folder, "sh", "-c", "sleep 600 & echo $!; exit 3"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    assert process.wait(timeout=20) == 3
    assert gone(grandchild)
    process.stdin.close()
    process.stdout.close()
