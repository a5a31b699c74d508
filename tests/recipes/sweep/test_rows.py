"""The figures of a run, the best of several, and why one failed, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swiftune.config import SweepArguments
from swiftune.config.combinations import parse
from swiftune.config.swept import Sweep
from swiftune.recipes.sweep import picture, report
from swiftune.recipes.sweep.jobs import environment
from swiftune.recipes.sweep.rows import Row, best_of, figures_of, reason_in
from swiftune.recipes.sweep.search import Grid, Trials

LOG: list[dict[str, Any]] = [
    {"eval_loss": 0.1, "eval_acc": 0.99, "global_step/max_steps": "0/4", "memory(GiB)": 1.0},
    {"loss": 3.0, "acc": 0.1, "global_step/max_steps": "1/4", "memory(GiB)": 2.5},
    {"eval_loss": 2.0, "eval_acc": 0.5, "global_step/max_steps": "2/4", "memory(GiB)": 2.0},
    {"loss": 1.0, "acc": 0.3, "global_step/max_steps": "4/4", "memory(GiB)": 2.0},
    {"eval_loss": 2.5, "eval_acc": 0.7, "global_step/max_steps": "4/4", "memory(GiB)": 2.0},
    {
        "train_runtime": 12.5,
        "train_loss": 2.0,
        "train_tokens_per_second": 80.0,
        "global_step/max_steps": "4/4",
        "memory(GiB)": 2.0,
    },
]


def sweep_of(line: str) -> Sweep:
    return parse(SweepArguments, ["sft", "--dataset", "a", "--val_dataset", "b", *line.split()])


def test_figures_of_a_run() -> None:
    assert figures_of(LOG, "eval_loss") == {
        "train_runtime": 12.5,
        "train_loss": 2.0,
        "acc": 0.3,
        "eval_loss": 2.0,  # the best evaluation, not the last one, and not that before the first step
        "eval_acc": 0.5,
        "memory(GiB)": 2.5,
        "tokens/s": 80.0,
    }
    assert figures_of(LOG, "eval_acc")["eval_loss"] == 2.5
    nan = [record | {"eval_loss": float("nan")} if "eval_loss" in record else record for record in LOG]
    assert "eval_loss" not in figures_of(nan, "eval_loss")


def test_the_best_is_the_least_loss_or_the_greatest_accuracy_of_those_that_ended(tmp_path: Path) -> None:
    rows = Grid(sweep_of("--lora_rank 1 2 3 4"), tmp_path).known
    for row, loss, acc in zip(rows, (3.0, 1.0, 2.0, 0.0), (0.1, 0.2, 0.3, 0.9), strict=True):
        row.state, row.figures = "done", {"eval_loss": loss, "eval_acc": acc, "train_runtime": loss}
    rows[3].state = "failed"
    assert best_of(rows, "eval_loss") is rows[1]
    assert best_of(rows, "eval_acc") is rows[2]
    assert best_of(rows, "train_runtime") is rows[1]
    assert best_of(rows, "eval_gsm8k") is None
    assert best_of([], "eval_loss") is None


def test_a_run_is_done_when_its_log_has_its_totals(tmp_path: Path) -> None:
    row = Grid(sweep_of("--lora_rank 1 2"), tmp_path).known[0]
    run = row.folder / "v10-20261125-101500"
    (row.folder / "v9-20261125-101400").mkdir(parents=True)
    run.mkdir()
    log = run / "logging.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in LOG[:-1]))
    assert not row.settle("eval_loss")
    log.write_text("".join(json.dumps(record) + "\n" for record in LOG))
    assert row.settle("eval_loss")
    assert row.figures["eval_loss"] == 2.0


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("note x\nerror: it is so. Do that.\nerror: and more\n", 2, "it is so. Do that."),
        ("Traceback\nValueError: x\n\n", 1, "ValueError: x"),
        ("", 7, "it ended with exit code 7"),
        ("a\n", -9, "it was ended by signal 9, as Linux ends a process when memory runs out"),
    ],
)
def test_why_a_run_failed(said: str, code: int, reason: str, tmp_path: Path) -> None:
    output = tmp_path / "terminal.log"
    output.write_text("error: of an earlier time\n" + said)
    assert reason_in(output, code, offset=len("error: of an earlier time\n")) == reason


def test_the_files_of_a_sweep(tmp_path: Path) -> None:
    sweep = sweep_of("--system a|b *c* --lora_rank 1 2")
    rows = Grid(sweep, tmp_path).known
    rows[0].state, rows[0].figures = "done", figures_of(LOG, "eval_loss")
    rows[1].state, rows[1].reason = "failed", "out of | luck\nreally"
    report.write(tmp_path, sweep, rows)
    picture.draw(tmp_path, sweep, rows)
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert lines[0].startswith(
        "| system | lora_rank | time | loss | acc | eval_loss | eval_acc | GiB | tokens/s | state |"
    )
    assert lines[2].startswith(
        "| **a\\|b** | **1** | **12s** | **2** | **0.3** | **2** | **0.5** | **2.50** | **80** |"
    )
    assert "failed: out of \\| luck really" in lines[3]
    best = (tmp_path / "best.sh").read_text().splitlines()
    assert best[-1] == "swift sft --system 'a|b' --dataset a --val_dataset b --lora_rank 1"
    assert best[1] == "# system a|b, lora_rank 1: eval_loss 2, the least of 1 runs."
    assert (tmp_path / "sweep.png").exists()
    assert not list(tmp_path.glob(".*.partial"))
    report.refuse_another(tmp_path, sweep)  # itself


def test_a_search_that_is_interrupted_goes_on_as_it_would_have(tmp_path: Path) -> None:
    sweep = sweep_of("--learning_rate 1e-5..1e-1 --lora_rank 4..64 --lora_alpha 8 16 --sweep_trials 14")

    def searched(folder: Path, interruptions: tuple[int, ...]) -> list[dict[str, str]]:
        folder.mkdir()
        found: list[Row] = []
        search = Trials(sweep, folder)
        while row := search.next():
            if len(found) in interruptions:  # the row has been given, and is not told
                interruptions = tuple(n for n in interruptions if n != len(found))
                search, found = Trials(sweep, folder), []
                continue
            found.append(row)
            row.figures["eval_loss"] = abs(float(row.run.values["learning_rate"]) - 1e-3)
            search.tell(row)
        return [row.run.values for row in found]

    whole = searched(tmp_path / "a", ())
    assert len(whole) == 14
    assert searched(tmp_path / "b", (3, 12)) == whole
    late = [float(values["learning_rate"]) for values in whole[10:]]
    early = [float(values["learning_rate"]) for values in whole[:10]]
    assert min(abs(rate - 1e-3) for rate in late) <= min(abs(rate - 1e-3) for rate in early) * 10
    assert all(4 <= int(values["lora_rank"]) <= 64 for values in whole)


def test_a_failed_trial_is_told_to_the_search_and_stays_a_row(tmp_path: Path) -> None:
    sweep = sweep_of("--learning_rate 1e-5..1e-1 --sweep_trials 2")
    search = Trials(sweep, tmp_path)
    row = search.next()
    assert row
    row.state = "failed"
    row.folder.mkdir()
    (row.folder / "terminal.log").write_text("error: it is so.\n")
    search.tell(row)
    again = Trials(sweep, tmp_path)
    assert [(known.run.name, known.state, known.reason) for known in again.known] == [
        (row.run.name, "failed", "it is so.")
    ]
    second = again.next()
    assert second
    assert second.run.name.startswith("trial-001,")
    second.figures["eval_loss"] = 1.0
    again.tell(second)
    assert again.next() is None


def test_jobs_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert int(environment(0, 2)["OMP_NUM_THREADS"]) >= 1
    assert environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert "OMP_NUM_THREADS" not in environment(0, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "0"
