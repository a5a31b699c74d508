"""``swift sweep`` as a user runs it: on small models, with a crash, interrupted, killed, and run again."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.recipes.chats import Flags, chats, log_of, swift, words, write_jsonl


@pytest.fixture
def flags(tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flags:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(12)),
        "val_dataset": write_jsonl(tmp_path / "val.jsonl", chats(4, seed=1)),
        "torch_dtype": "float32",
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "output_dir": tmp_path / "sweep",
    }


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())  # type: ignore[no-any-return]


def states(folder: Path) -> list[str]:
    return [run["state"] for run in record(folder)["runs"]]


@pytest.mark.slow
def test_one_that_crashes_is_a_row_and_the_others_run(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(flags["output_dir"])
    line = ["sweep", "sft", *words(flags), "--sweep_jobs", 2, "--max_bad_steps", 1, "--learning_rate"]
    assert swift(*line, "1e-3", "1e38", "1e-1") == 1
    shown = capsys.readouterr()
    assert states(folder) == ["done", "failed", "done"]
    (failed,) = [run for run in record(folder)["runs"] if run["state"] == "failed"]
    assert "not finite" in failed["reason"]
    assert failed["reason"] in shown.out

    logs = {path.parent.name: log_of(next(path.parent.glob("v0-*"))) for path in folder.glob("*/terminal.log")}
    losses = {
        name: min(r["eval_loss"] for r in log if "eval_loss" in r)
        for name, log in logs.items()
        if "train_loss" in log[-1]
    }
    best = min(losses, key=lambda name: losses[name])
    assert record(folder)["best"] == best
    rate = best.removeprefix("learning_rate=")
    assert f"learning_rate {rate}: eval_loss {losses[best]:.4g}, the least of 2 runs." in shown.out
    command = (folder / "best.sh").read_text().splitlines()[-1]
    assert command in shown.out
    assert shlex.split(command)[:2] == ["swift", "sft"]
    assert f"--learning_rate {rate}" in command
    assert "--output_dir" not in command

    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["state"] == "done":
            totals = logs[row["folder"]][-1]
            assert float(row["train_runtime"]) == totals["train_runtime"]
            assert float(row["train_loss"]) == totals["train_loss"]
            assert float(row["tokens/s"]) == totals["train_tokens_per_second"]
            assert float(row["eval_loss"]) == losses[row["folder"]]
    assert (folder / "sweep.md").read_text().startswith("| learning_rate | time | loss | acc | eval_loss | eval_acc |")
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/v*/logging.jsonl")}
    assert swift(*line, "1e-3", "1e-1", "1e-2") == 0  # one fewer, one more: those that are done are not run again
    again = capsys.readouterr().err
    assert again.count("was done before") == 2
    assert [run["values"]["learning_rate"] for run in record(folder)["runs"]] == ["0.001", "0.1", "0.01"]
    done = [path for path in before if "1e+38" not in str(path)]
    assert {path: path.stat().st_mtime_ns for path in done} == {path: before[path] for path in done}

    assert swift(*line, "1e-3", "1e-1", "--num_train_epochs", 2) == 2
    refused = capsys.readouterr().err
    assert f"--output_dir {folder} has another sweep: --num_train_epochs (not given then, 2.0 now)." in refused
    assert swift("sweep", "sft", *words(flags), "--lora_rank", 2, 4) == 2
    assert "has another sweep: over learning_rate, not lora_rank." in capsys.readouterr().err


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_is_interrupted_is_gone_on_with(flags: Flags, how: signal.Signals, tmp_path: Path) -> None:
    folder = Path(flags["output_dir"])
    flags |= {
        "dataset": write_jsonl(tmp_path / "many.jsonl", chats(600)),
        "per_device_train_batch_size": 300,
        "gradient_accumulation_steps": 1,
        "save_steps": 1,
        "eval_steps": 100,
        "max_steps": 8,
    }
    line = ["sweep", "sft", *words(flags), "--lora_rank", "2", "4"]
    with subprocess.Popen(
        [sys.executable, "-m", "swiftune.cli.main", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
        start_new_session=True,
    ) as process:
        wait_for(lambda: list(folder.glob("*/v*/checkpoint-2")), process)
        process.send_signal(how)
        _, said = process.communicate(timeout=120)
    run = next(folder.glob("lora_rank=2/v0-*"))
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert states(folder) == ["interrupted", "waiting"]
        found = re.search(r"interrupted: 0 of 2 runs are done; .* Go on with: swift (sweep .+)", said)
        assert found, said
        line = shlex.split(found[1])
    assert not list(run.glob("checkpoint-8"))
    assert swift(*line) == 0  # after SIGKILL it waits until the run has noticed, and saved
    assert states(folder) == ["done", "done"]
    assert re.search(r"lora_rank 2: goes on from checkpoint-[2-7]\n", (folder / "run.log").read_text())
    assert len(list(folder.glob("lora_rank=2/v*"))) == 1
    assert [r["global_step/max_steps"] for r in log_of(run) if "loss" in r] == [f"{step}/8" for step in range(1, 9)]


@pytest.mark.slow
def test_a_search_is_run_and_gone_on_with(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(flags["output_dir"])
    line = ["sweep", "sft", *words(flags), "--learning_rate", "1e-4..1e-1", "--sweep_trials"]
    assert swift(*line, 1) == 0
    assert swift(*line, 2) == 0
    assert "was done before" in capsys.readouterr().err
    first, second = record(folder)["runs"]
    rates = [float(run["values"]["learning_rate"]) for run in (first, second)]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert rates[0] != rates[1]
    assert record(folder)["best"] == min((first, second), key=lambda run: run["eval_loss"])["folder"]
    assert math.isfinite(second["eval_loss"])


def test_nothing_runs_where_a_flag_is_wrong(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    assert swift("sweep", "sft", *words(flags), "--lora_rank", 4, "eight", "--lora_alha", 1, 2) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --lora_alha is unknown; did you mean --lora_alpha?",
        "error: --lora_rank takes a whole number above 0, not 'eight'.",
    ]
    assert not Path(flags["output_dir"]).exists()


def test_two_sweeps_do_not_share_a_folder(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(flags["output_dir"])
    folder.mkdir()
    with FileLock(folder / ".sweep.lock"):
        assert swift("sweep", "sft", *words(flags), "--lora_rank", 4, 8) == 2
    assert "is in use: another process runs a sweep in it." in capsys.readouterr().err


def test_a_record_that_is_none(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(flags["output_dir"])
    folder.mkdir()
    (folder / "sweep.json").write_text("[1]")
    assert swift("sweep", "sft", *words(flags), "--lora_rank", 4, 8) == 2
    assert "sweep.json is not the record of a sweep" in capsys.readouterr().err


def test_without_optuna_the_line_that_installs_it(
    flags: Flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    line = ["sweep", "sft", *words(flags), "--learning_rate", "1e-4..1e-1", "--sweep_trials", 2]
    assert swift(*line) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --sweep_trials needs a package. Install it: pip install 'optuna>=4.5,<6'"
    )
