"""Several commands at once, and commands that were killed while others wait: no clash, no half file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.chats import Flags, chats, log_of, run_of, words, write_jsonl
from tests.train.test_run_folder import number_of


def start(flags: Flags, processes: int = 1) -> subprocess.Popen[str]:
    several = {"NPROC_PER_NODE": str(processes)} if processes > 1 else {}
    return subprocess.Popen(
        [sys.executable, "-m", "swiftune.cli.main", "sft", *words(flags)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | several,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Returns as soon as something has happened in ``process``."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


@pytest.fixture
def base(tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flags:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    return {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(20)),
        "torch_dtype": "float32",
        "gradient_accumulation_steps": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "output_dir": tmp_path / "out",
    }


@pytest.mark.slow
def test_eight_runs_at_once_are_eight_whole_runs_with_the_same_bits(base: Flags, tmp_path: Path) -> None:
    processes = [start(base) for _ in range(8)]
    for process in processes:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    runs = sorted((tmp_path / "out").iterdir(), key=number_of)
    assert [number_of(run) for run in runs] == list(range(8))
    for run in runs:
        assert {path.name for path in run.iterdir()} == {
            *("args.json", "run.json", "run.log", "logging.jsonl", "set_aside.jsonl", "images", "checkpoint-3"),
        }
        assert [record["loss"] for record in log_of(run) if "loss" in record] == [
            record["loss"] for record in log_of(runs[0]) if "loss" in record
        ]
    weights = {(run / "checkpoint-3/adapter_model.safetensors").read_bytes() for run in runs}
    assert len(weights) == 1
    for room in ("samples", "tokens"):
        (entry,) = (tmp_path / "cache" / room).iterdir()
        assert (entry / "about.json").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("room", ["samples", "tokens"])
def test_a_killed_command_leaves_nothing_half_made_to_the_next(base: Flags, tmp_path: Path, room: str) -> None:
    cache = tmp_path / "cache"
    whole = base | {"dataset": write_jsonl(tmp_path / "many.jsonl", chats(20_000)), "dataset_num_proc": 2}
    with start(whole) as process:
        wait_for(lambda: list((cache / room).glob(".*.part/rows.arrow")), process)
        process.kill()
        process.communicate(timeout=60)
    (part,) = (cache / room).glob(".*.part")
    assert not [path for path in (cache / room).iterdir() if path != part], "something half made has its name"
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    wait_for_the_end_of(process.pid)  # of its processes that tokenize, which notice that it is gone
    with start(base) as process:  # other data: what it finds is not its own
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert not part.exists()
    assert len(list((cache / room).iterdir())) == 1


def wait_for_the_end_of(session: int) -> None:
    """Returns when no process of a session is left."""
    import psutil

    deadline = time.monotonic() + 20
    while left := [p for p in psutil.process_iter() if _session_of(p.pid) == session]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.slow
def test_a_run_is_not_gone_on_with_while_it_goes_on(base: Flags, tmp_path: Path) -> None:
    long = base | {"max_steps": 100_000, "save_steps": 2, "save_total_limit": 3}
    with start(long) as process:
        wait_for(lambda: list((tmp_path / "out").glob("v*/checkpoint-*/trainer_state.json")), process)
        run = run_of(tmp_path / "out")
        with start(long | {"resume_from_checkpoint": "true"}) as second:
            _, said = second.communicate(timeout=60)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert second.returncode == 2
    assert said.splitlines()[-1] == (
        f"error: {run} is in use: process {process.pid} trains in it. Wait for its end, or begin another run."
    )
    assert process.returncode == 143
    assert not (run / ".lock").exists()
