"""Losses that are no numbers: a model with one token that makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.recipes.chats import Flags, chats, log_of, run_of, sft, write_jsonl
from tests.tiny import make_model

BAD = {"messages": [{"role": "user", "content": "~50"}, {"role": "assistant", "content": "half of it"}]}


@pytest.fixture
def base(tmp_path: Path) -> Flags:
    """Steps of 4 rows in their order, at one learning rate and without dropout."""
    from transformers import AutoTokenizer

    model = make_model(tmp_path / "model", "llama")
    weights = load_file(model / "model.safetensors")
    (token,) = AutoTokenizer.from_pretrained(model)("~", add_special_tokens=False)["input_ids"]
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return {
        "model": model,
        "dataset": tmp_path / "rows.jsonl",
        "torch_dtype": "float32",
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 1,
        "train_dataloader_shuffle": "false",
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "lora_dropout": 0,
        "logging_steps": 1,
        "save_steps": 1,
        "output_dir": tmp_path / "out",
    }


def test_a_step_that_is_not_finite_is_not_applied_and_told(
    base: Flags, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = chats(16)
    rows[5] = BAD  # in the second step of four
    write_jsonl(Path(base["dataset"]), rows)
    assert sft(base) == 0
    run = run_of(tmp_path / "out")
    assert "Step 2 was not applied: loss nan, grad_norm nan" in capfd.readouterr().err
    assert [(r["bad_steps"], r["global_step/max_steps"]) for r in log_of(run) if "bad_steps" in r] == [(1, "2/4")]
    assert [r["global_step/max_steps"] for r in log_of(run) if "loss" in r] == ["1/4", "3/4", "4/4"]
    (entry,) = [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]
    assert entry["step"] == 2
    assert [row["loss"] == "nan" for row in entry["rows"]] == [False, True, False, False]
    assert "~50" in entry["rows"][1]["text"]
    assert not (run / "checkpoint-2").exists()

    write_jsonl(Path(base["dataset"]), rows[:4] + rows[8:])
    assert sft(base, output_dir=tmp_path / "without") == 0
    a, b = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (run / "checkpoint-4", run_of(tmp_path / "without") / "checkpoint-3")
    )
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_too_many_in_a_row_end_the_run_at_the_last_good_checkpoint(
    base: Flags, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(Path(base["dataset"]), [*chats(8), *[BAD] * 24])
    assert sft(base, max_bad_steps=3) == 1
    said = capfd.readouterr().err
    run = run_of(tmp_path / "out")
    assert "error: 3 steps in a row, up to step 5," in said
    assert f"--resume_from_checkpoint {run / 'checkpoint-2'}" in said
    assert "Traceback" not in said
    assert len((run / "bad_steps.jsonl").read_text().splitlines()) == 3
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert all(torch.isfinite(v).all() for v in load_file(run / "checkpoint-2/adapter_model.safetensors").values())


def test_a_good_step_begins_the_count_anew(base: Flags, tmp_path: Path) -> None:
    bad, good = [BAD] * 4, chats(4)
    write_jsonl(Path(base["dataset"]), [*bad, *bad, *good, *bad, *bad, *good, *bad])
    assert sft(base, max_bad_steps=3) == 0
    run = run_of(tmp_path / "out")
    assert [r["bad_steps"] for r in log_of(run) if "bad_steps" in r] == [1, 2, 1, 2, 1]
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6", "checkpoint-7"}
