"""What a run says of its checkpoints' size, against what they take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.recipes.chats import Flags, chats, run_of, sft, write_jsonl
from tests.tiny import make_model


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "flags",
    [
        {"torch_dtype": "bfloat16"},
        {"train_type": "full"},
        {"train_type": "full", "torch_dtype": "bfloat16"},
        {"train_type": "full", "torch_dtype": "bfloat16", "save_only_model": "true"},
        {"save_only_model": "true"},
        {"optim": "sgd"},
    ],
    ids=str,
)
def test_what_is_said_before_is_what_they_take(tmp_path: Path, flags: Flags, capfd: pytest.CaptureFixture[str]) -> None:
    base: Flags = {
        "model": make_model(tmp_path / "model", hidden=256, layers=4),
        "dataset": write_jsonl(tmp_path / "rows.jsonl", chats(8)),
        "torch_dtype": "float32",
        "lora_rank": 64,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "save_steps": 1,
        "save_total_limit": 1,
        "output_dir": tmp_path / "out",
    }
    assert sft(base | flags) == 0
    each, total, count = re.search(
        r"Checkpoints: about ([\d.,]+) MiB each, ([\d.,]+) MiB for the (\d) on the disk at once",
        capfd.readouterr().err,
    ).groups()  # type: ignore[union-attr]
    (last,) = run_of(tmp_path / "out").glob("checkpoint-*")
    text = 0.15 if "train_type" in flags else 0.03  # MiB of tokenizer, configuration, headers
    assert float(each) == pytest.approx(size(last) / 2**20, abs=text + 0.05, rel=0.03)
    assert count == "2"
    assert float(total) == pytest.approx(2 * float(each), abs=0.15)
