"""Memory that really runs out: the kernel refuses it (RLIMIT_AS), and torch's allocator fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.chats import Flags, chats, log_of, sft, words, write_jsonl
from tests.tiny import make_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flags:
    """Three steps of 32 rows of one length, which take about 150 MiB at once in training."""
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    (row,) = chats(1)
    return {
        "model": make_model(tmp_path / "model", layers=8, hidden=256),
        "dataset": write_jsonl(tmp_path / "rows.jsonl", [row] * 96),
        "torch_dtype": "float32",
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 32,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "max_tokens_per_batch": 2048,
        "gradient_checkpointing": "false",
        "report_to": "none",
        "add_version": "false",
    }


def start(flags: Flags, mib: int, **environment: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.recipes.scarce", str(mib), "sft", *words(flags)],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "MALLOC_ARENA_MAX": "1"}
        | {k: str(v) for k, v in environment.items()},
        stderr=subprocess.PIPE,
        text=True,
    )


def budgets(run: Path) -> list[tuple[int, str]]:
    records = [r for r in log_of(run) if "max_tokens_per_batch" in r]
    return [(r["max_tokens_per_batch"], r["global_step/max_steps"]) for r in records]


def same_as_with(budget: int, base: Flags, run: Path, plain: Path, **changes: Any) -> None:
    """Checks ``run`` against one that has that budget from the beginning, and all the memory."""
    assert sft(base | {"max_tokens_per_batch": budget, "output_dir": plain} | changes) == 0
    for name in ("loss", "grad_norm"):
        figures = [[r[name] for r in log_of(folder) if name in r] for folder in (run, plain)]
        assert len(figures[0]) == 3
        assert figures[0] == pytest.approx(figures[1], rel=1e-5), name
    a, b = (load_file(next(folder.glob("checkpoint-3/*model.safetensors"))) for folder in (run, plain))
    assert all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6) for key in a | b)


def test_a_step_is_done_again_with_half_the_budget_and_the_same_result(base: Flags, tmp_path: Path) -> None:
    """The random state is that of the step's beginning: even what dropout drops is the same."""
    run = tmp_path / "scarce"
    with start(base | {"output_dir": run, "lora_dropout": 0.1}, 75) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "warning Memory ran out with " in err
    ((budget, step),) = budgets(run)
    assert step == "1/3"
    assert budget in (656, 328)  # half of 16 rows of 82 tokens, or a quarter
    same_as_with(budget, base, run, tmp_path / "plain", lora_dropout=0.1)


def test_where_not_even_a_row_fits_the_run_says_what_to_do_and_keeps_what_it_has(base: Flags, tmp_path: Path) -> None:
    run = tmp_path / "scarce"
    (long,) = chats(1)
    long["messages"][1]["content"] = " ".join(["helpful"] * 1500)
    write_jsonl(Path(base["dataset"]), [*chats(8), long])
    base |= {"gradient_accumulation_steps": 4, "train_dataloader_shuffle": "false", "output_dir": run}
    with start(base, 60) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    error = err[err.index("error: ") :].replace("\n", " ")
    assert "Memory ran out with one row at a time, the longest of 1" in error
    assert "--gradient_checkpointing true" in error
    assert "Go on with: swift sft" in error
    last = run / "checkpoint-2"
    assert last.exists()
    plenty = {"resume_from_checkpoint": last, "output_dir": tmp_path / "rest"}
    assert sft(base | plenty) == 0
    assert [r["global_step/max_steps"] for r in log_of(tmp_path / "rest") if "loss" in r] == ["3/3"]


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_two_processes_do_it_again_together(base: Flags, tmp_path: Path, train_type: str) -> None:
    """Only the second one has too little memory: how much that is differs from run to run, with what loading left."""
    base |= {"lora_dropout": 0, "train_type": train_type, "optim": "sgd", "gradient_accumulation_steps": 16}
    for mib in (60, 50, 40, 30, 25):
        run = tmp_path / f"scarce-{mib}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        flags = base | {"output_dir": run}
        with (
            start(flags, 0, RANK=0, LOCAL_RANK=0, **place) as first,
            start(flags, mib, RANK=1, LOCAL_RANK=1, **place) as second,
        ):
            _, err = first.communicate(timeout=120)
            _, other = second.communicate(timeout=120)
        assert (first.returncode, second.returncode) == (0, 0), err + other
        if [step for _, step in budgets(run)][:1] == ["1/3"]:
            break
    else:
        pytest.fail("memory never ran out in the first step")
    assert "warning Memory ran out with " in err
    budget = budgets(run)[0][0]
    same_as_with(budget, base | {"gradient_accumulation_steps": 32}, run, tmp_path / "plain")
