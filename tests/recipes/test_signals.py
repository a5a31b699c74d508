"""Ctrl-C and SIGTERM in every phase of a run, as a terminal or a scheduler sends them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.recipes.chats import Flags, chats, log_of, run_of, swift, write_jsonl
from tests.recipes.test_at_once import start, wait_for, wait_for_the_end_of

pytestmark = pytest.mark.slow
BOTH = pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
BEGAN = "v*/logging.jsonl"


@pytest.fixture
def base(tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flags:
    """A run without end."""
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    return {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(50)),
        "torch_dtype": "float32",
        "gradient_accumulation_steps": 2,
        "max_steps": 100_000,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": tmp_path / "out",
    }


@pytest.fixture
def slow(base: Flags, tmp_path: Path) -> Flags:
    """One with steps of a second or more."""
    return base | {
        "dataset": write_jsonl(tmp_path / "many.jsonl", chats(3000)),
        "per_device_train_batch_size": 1500,
        "gradient_accumulation_steps": 1,
    }


@dataclass
class Ended:
    code: int
    said: str
    seconds: float
    """From the signal to the end."""


def stop(
    flags: Flags,
    how: signal.Signals,
    when: Callable[[], object],
    *,
    again: bool = False,
    wait: float = 0,
    processes: int = 1,
) -> Ended:
    """Runs ``swift sft`` and sends it a signal: Ctrl-C to all of its processes, as terminals do; SIGTERM to it alone.

    Args:
        when: the signal is sent when this has become true,
        wait: and that many seconds have passed.
        again: a second one follows.
    """
    with start(flags, processes) as process:
        wait_for(when, process)
        time.sleep(wait)
        began = time.monotonic()
        for _ in range(1 + again):
            send(process, how)
            time.sleep(0.3 * again)
        _, said = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    wait_for_the_end_of(process.pid)
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    return Ended(process.returncode, said, seconds)


def send(process: subprocess.Popen[str], how: signal.Signals) -> None:
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.suffix in (".part", ".partial") or path.name == ".lock"]


def go_on(said: str, steps: int = 2) -> None:
    """Runs the command that was told, for some steps more."""
    found = re.search(r"Go on with: swift (sft .+)", said)
    assert found, said
    command = shlex.split(found[1])
    last = int(command[-1].rsplit("-", 1)[1])
    assert swift(*command, "--max_steps", last + steps, "--resume_anyway", "true") == 0
    run = Path(command[-1]).parent
    logged = [int(r["global_step/max_steps"].split("/")[0]) for r in log_of(run) if "loss" in r]
    assert logged == list(range(1, last + steps + 1))


@BOTH
@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 1), (1, 2)])
def test_while_tokenizing(base: Flags, tmp_path: Path, how: signal.Signals, workers: int, processes: int) -> None:
    base |= {"dataset": write_jsonl(tmp_path / "many.jsonl", chats(40_000)), "dataset_num_proc": workers}
    ended = stop(base, how, lambda: list((tmp_path / "cache/tokens").glob(".*.part")), wait=0.5, processes=processes)
    assert ended.code == 128 + how
    assert ended.said.splitlines()[-1] == "interrupted"
    assert not leftovers(tmp_path)
    assert not list((tmp_path / "cache/tokens").iterdir())
    assert not list((tmp_path / "out").iterdir())


@BOTH
@pytest.mark.parametrize("seconds", [0.2, 0.5, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0])
def test_at_any_time_before_the_first_step(base: Flags, tmp_path: Path, how: signal.Signals, seconds: float) -> None:
    ended = stop(base, how, lambda: True, wait=seconds)
    assert ended.code == 128 + how
    assert not leftovers(tmp_path)


@BOTH
def test_while_the_model_is_loaded(base: Flags, tmp_path: Path, how: signal.Signals) -> None:
    ended = stop(base, how, lambda: list((tmp_path / "out").glob("v*/set_aside.jsonl")))
    assert ended.code == 128 + how
    assert not list((tmp_path / "out").iterdir()), "a run that never began is left"


@BOTH
@pytest.mark.parametrize("processes", [1, 2])
def test_in_an_evaluation(base: Flags, tmp_path: Path, how: signal.Signals, processes: int) -> None:
    base |= {"val_dataset": write_jsonl(tmp_path / "val.jsonl", chats(6000, seed=9)), "eval_steps": 1}
    base |= {"eval_strategy": "steps"}
    ended = stop(base, how, lambda: list((tmp_path / "out").glob(BEGAN)), wait=0.2, processes=processes)
    assert ended.code == 128 + how
    assert "eval_loss" not in (run_of(tmp_path / "out") / "logging.jsonl").read_text()
    assert not leftovers(tmp_path)
    if processes == 1:
        go_on(ended.said)


@BOTH
def test_while_a_checkpoint_is_written_and_pictures_are_drawn(base: Flags, tmp_path: Path, how: signal.Signals) -> None:
    base |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    for seen in ("v*/.checkpoint-*.partial", "v*/images"):
        ended = stop(base, how, lambda seen=seen: list((tmp_path / "out").glob(seen)))  # type: ignore[misc]
        assert ended.code == 128 + how
        assert not leftovers(tmp_path)
        go_on(ended.said)
        (tmp_path / "out").rename(tmp_path / f"{seen[-6:]}")


@BOTH
def test_in_the_last_step(slow: Flags, tmp_path: Path, how: signal.Signals) -> None:
    ended = stop(slow | {"max_steps": 2}, how, lambda: list((tmp_path / "out").glob(BEGAN)), wait=0.3)
    assert ended.code == 128 + how
    last = run_of(tmp_path / "out") / "checkpoint-2"
    assert f"That was the last step. Talk to it: swift infer --adapters {last}\n" in ended.said
    assert (last / "adapter_model.safetensors").exists()


@BOTH
def test_a_second_one_leaves_at_once(slow: Flags, tmp_path: Path, how: signal.Signals) -> None:
    ended = stop(slow, how, lambda: list((tmp_path / "out").glob(BEGAN)), wait=0.3, again=True)
    assert ended.code == -how  # a shell says 130 or 143
    assert ended.seconds < 1
    assert "Go on with" not in ended.said
