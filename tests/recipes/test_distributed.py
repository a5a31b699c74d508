"""Several processes against one, as a user starts them: NPROC_PER_NODE=2 swift sft ..."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.chats import Flags, chats, log_of, run_of, sft, words, write_jsonl


def start(flags: Flags, *, processes: int = 2, **changes: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "swiftune.cli.main", "sft", *words(flags | changes)],
        env=os.environ | {"NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_two(flags: Flags, **changes: Any) -> tuple[int, str]:
    """The exit code and what was said on stderr; nothing may be written to stdout."""
    with start(flags, **changes) as process:
        out, err = process.communicate(timeout=100)
    assert out == ""
    return process.returncode, err


def figures(run: Path, *names: str) -> list[float]:
    return [record[name] for record in log_of(run) for name in names if name in record]


@pytest.fixture
def base(tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flags:
    """Steps of 4 rows without dropout, each logged, with an evaluation on 5 rows at the end."""
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    return {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(10)),
        "val_dataset": write_jsonl(tmp_path / "val.jsonl", chats(5, seed=9)),
        "torch_dtype": "float32",
        "num_train_epochs": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lora_dropout": 0,
        "lr_scheduler_type": "constant",
        "output_dir": tmp_path / "two",
        "gradient_accumulation_steps": 2,
    }


@pytest.mark.slow
@pytest.mark.parametrize("rows", [10, 9], ids=["last step of two rows", "last step of one row"])
def test_two_processes_do_what_one_does(base: Flags, tmp_path: Path, rows: int) -> None:
    base["dataset"] = write_jsonl(tmp_path / "train.jsonl", chats(rows))
    # AdamW would make a whole update of the rounding of a gradient that is all but zero.
    base |= {"optim": "sgd", "learning_rate": 0.1}
    code, err = run_two(base)
    assert code == 0, err
    assert sft(base, gradient_accumulation_steps=4, output_dir=tmp_path / "one") == 0
    one, two = run_of(tmp_path / "one"), run_of(tmp_path / "two")
    assert len(figures(two, "loss")) == 6
    for name in ("loss", "grad_norm", "acc", "eval_loss", "eval_acc"):
        assert figures(two, name) == pytest.approx(figures(one, name), rel=1e-6), name
    a, b = (load_file(run / "checkpoint-6/adapter_model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-6, atol=1e-6 * float(a[name].abs().max()))
    about = json.loads((two / "run.json").read_text())
    assert about["hardware"]["processes"] == 2
    assert about["rows_per_step"] == 4


@pytest.mark.slow
def test_one_process_speaks_and_writes(base: Flags, tmp_path: Path) -> None:
    code, err = run_two(base, dataloader_num_workers=4, max_steps=2, predict_with_generate="true", max_new_tokens=4)
    assert code == 0, err
    run = run_of(tmp_path / "two")  # one folder, not two
    lines = err.splitlines()
    assert sum("--dataloader_num_workers has no effect" in line for line in lines) == 1
    assert sum("15 rows read = 15 used + 0 set aside" in line for line in lines) == 1
    assert sum(line.startswith("loss: ") for line in lines) == 2
    assert sum(line.startswith("Done. The run is in ") for line in lines) == 1
    assert not [line for line in lines if "Warning" in line or "W1" in line[:2]]
    assert [record["global_step/max_steps"] for record in log_of(run) if "loss" in record] == ["1/2", "2/2"]
    answers = [json.loads(line) for file in run.glob("predictions-2.*") for line in file.read_text().splitlines()]
    assert len(answers) == 5


@pytest.mark.slow
def test_a_resumed_run_of_two_ends_with_the_same_bits(base: Flags, tmp_path: Path) -> None:
    base |= {"lora_dropout": 0.1, "save_steps": 3}
    code, err = run_two(base)
    assert code == 0, err
    whole = run_of(tmp_path / "two")
    again = tmp_path / "again"
    code, err = run_two(base, resume_from_checkpoint=whole / "checkpoint-3", output_dir=again)
    assert code == 0, err
    a, b = (load_file(run / "checkpoint-6/adapter_model.safetensors") for run in (whole, run_of(again)))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_mistake_is_answered_once(base: Flags, tmp_path: Path) -> None:
    code, err = run_two(base, dataset=tmp_path / "nowhere.jsonl")
    assert code == 2
    assert err.count("was not found") == 1
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_two_processes_saves(base: Flags, tmp_path: Path, how: signal.Signals) -> None:
    with start(base, num_train_epochs=2000) as process:
        deadline = time.time() + 60
        while not list((tmp_path / "two").glob("v*/logging.jsonl")) and time.time() < deadline:
            time.sleep(0.1)
        if how == signal.SIGINT:  # the terminal sends it to all of them
            for pid in children(process.pid):
                os.kill(pid, how)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + how, err
    assert "Traceback" not in err
    assert err.count("--resume_from_checkpoint") == 1
    (saved,) = run_of(tmp_path / "two").glob("checkpoint-*[0-9]")
    assert (saved / "trainer_state.json").exists()
    assert saved.name in err


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]
