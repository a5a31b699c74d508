"""Several processes on one or more machines, from the environment variables that scripts for ms-swift set.

NPROC_PER_NODE processes are started on this machine, of NNODES machines (1), of which it is number NODE_RANK (0). They
meet at MASTER_ADDR:MASTER_PORT, which have to be given where there are several machines. The first process writes to
the terminal; what the others write is shown where one of them is the one that failed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import BinaryIO

from swiftune.errors import ArgumentsError

LAUNCHER = "SWIFTUNE_LAUNCHER"
"""Environment variable with the number of the process that started this one as one of several."""
LOST_PEER = 75
"""Exit code of a process that failed only because another one did."""
GRACE = 10.0
"""Seconds in which the others have to end by themselves once one has failed; then they are told to; then killed."""


def is_main_process() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def has_lost_peer(error: Exception) -> bool:
    """Whether a process cannot go on because another one, which will say why, has failed."""
    return "WORLD_SIZE" in os.environ and isinstance(error, RuntimeError) and " peer" in str(error)


def end_with_launcher() -> None:
    """Has this process save and end, as on SIGTERM, once the one that ``launch`` ran in is gone, however it ended."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def is_wanted() -> bool:
    """Whether this process is to start others instead of doing the work itself."""
    return "LOCAL_RANK" not in os.environ and bool({"NPROC_PER_NODE", "NNODES"} & os.environ.keys())


def launch(words: Sequence[str]) -> int:
    """Runs ``swift`` with these words in NPROC_PER_NODE processes.

    Returns:
        0, or the exit code of the process that failed of itself.
    """
    environment = _environment()
    count, first = int(environment["LOCAL_WORLD_SIZE"]), int(environment["NODE_RANK"])
    command = [sys.executable, "-m", "swiftune.cli.main", *words]
    asked: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []
    with _passed_on(processes, asked), ExitStack() as stack:
        kept = [stack.enter_context(tempfile.TemporaryFile()) if first + local else None for local in range(count)]
        for local, file in enumerate(kept):
            place = {"RANK": str(first * count + local), "LOCAL_RANK": str(local), LAUNCHER: str(os.getpid())}
            processes.append(
                stack.enter_context(
                    subprocess.Popen(command, env=os.environ | environment | place, stdout=file, stderr=file)
                )
            )
            for number in asked:  # while it was being started
                processes[-1].send_signal(number)
        codes = _wait(processes)
        return _verdict(codes, kept)


def _environment() -> dict[str, str]:
    """What all processes of this machine have in common."""
    count, machines, node = _number("NPROC_PER_NODE", 1, 1), _number("NNODES", 1, 1), _number("NODE_RANK", 0, 0)
    absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if machines > 1 and absent:
        raise ArgumentsError([f"NNODES={machines} needs {name}, the same on every machine." for name in absent])
    if node >= machines:
        raise ArgumentsError([f"NODE_RANK={node} is too much: the machines are numbered from 0 to {machines - 1}."])
    return {
        "WORLD_SIZE": str(count * machines),
        "LOCAL_WORLD_SIZE": str(count),
        "NODE_RANK": str(node),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count)),
    }


def _number(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit() or int(text) < least:
        raise ArgumentsError([f"The environment variable {name} is {text!r}; it takes a whole number from {least} on."])
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]], asked: list[int]) -> Iterator[None]:
    """Ctrl-C reaches the processes from the terminal, SIGTERM from here; they save what they have."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for process in processes:
            process.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Waits for all, and returns their exit codes."""
    failed_at: float | None = None
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if failed_at is None and any(process.returncode for process in processes):
            failed_at = time.monotonic()
        if failed_at is not None:
            _hurry(processes, time.monotonic() - failed_at)
    return [128 - code if code < 0 else code for code in (process.returncode for process in processes)]


def _hurry(processes: Sequence[subprocess.Popen[bytes]], waited: float) -> None:
    for process in processes:
        if process.poll() is None and waited > 2 * GRACE:
            process.kill()
        elif process.poll() is None and waited > GRACE:
            process.terminate()


def _verdict(codes: Sequence[int], kept: Sequence[BinaryIO | None]) -> int:
    """The exit code of the first process that failed of itself, once its words have been shown."""
    failed = [local for local, code in enumerate(codes) if code]
    if not failed:
        return 0
    guilty = next((local for local in failed if codes[local] != LOST_PEER), failed[0])
    if (file := kept[guilty]) is not None:
        file.seek(0)
        sys.stderr.flush()
        shutil.copyfileobj(file, sys.stderr.buffer)
    return 1 if codes[guilty] == LOST_PEER else codes[guilty]
