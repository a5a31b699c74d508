"""Whether speed costs quality: ``python -m benchmarks.quality --dataset FILE``.

``swift sft`` and a plain loop of Transformers + PEFT take the same 10 steps of 16 rows: the same tokens in the same
order, seed, schedule and optimizer, dropout drawn apart. Then one plain evaluation of both adapters, in the same
dtype, on the 200 rows after them. FILE is a JSON list or JSON lines with at least 360 rows. Takes minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import get_cosine_schedule_with_warmup

from benchmarks.measure import DTYPE, Report, autocast, keep, machine
from swiftune.config import SftArguments
from swiftune.config.parse import parse
from swiftune.models.load import load_model
from swiftune.recipes.opening import open_tokenizer
from swiftune.recipes.training_data import prepare
from swiftune.runtime import seeds
from swiftune.tuners import attach_lora, load_adapter
from swiftune.types import Row

FLAGS = (
    "--torch_dtype bfloat16 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 --warmup_ratio 0.05 "
    "--num_train_epochs 1 --per_device_train_batch_size 1 --eval_strategy no --report_to none"
)


def tensors(row: Row) -> dict[str, torch.Tensor]:
    """A row as a batch of one."""
    ids_1T, labels_1T = (torch.from_numpy(np.asarray(x, dtype=np.int64))[None] for x in (row.ids_T, row.labels_T))
    return {"input_ids": ids_1T, "labels": labels_1T}


def loss_sum(model: Any, row: Row) -> torch.Tensor:
    """Transformers' own loss, summed over the supervised tokens of a row."""
    with autocast():
        return model(**tensors(row), use_cache=False, num_items_in_batch=1).loss  # type: ignore[no-any-return]


def train_plainly(args: SftArguments, opened: Any, feed: Any) -> Any:
    """The loop as one would write it."""
    seeds.seed_everything(args.seed)
    model = attach_lora(load_model(opened.folder, dtype=DTYPE), args).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(trained, args.learning_rate, betas, args.adam_epsilon, args.weight_decay)
    warmup = int(np.ceil(feed.steps * args.warmup_ratio))
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, feed.steps)
    for number in range(feed.steps):
        rows = feed.take(number)
        supervised = sum(row.supervised for row in rows)
        for row in rows:
            (loss_sum(model, row) / supervised).backward()
        torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def evaluate(model: Any, rows: Iterable[Row]) -> float:
    """Mean loss over all supervised tokens."""
    model.eval()
    pairs = [(float(loss_sum(model, row)), row.supervised) for row in rows]
    return sum(loss for loss, _ in pairs) / sum(count for _, count in pairs)


def run(dataset: Path, model: str | None = None, train: int = 160, unseen: int = 200, per_step: int = 16) -> Report:
    """Trains both, evaluates both."""
    text = dataset.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    report = Report(
        f"loss on {unseen} unseen rows after {train // per_step} steps of {per_step}, {machine()}", ("by", "loss", "%")
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "train.json").write_text(json.dumps(rows[:train]))
        (work / "unseen.json").write_text(json.dumps(rows[train : train + unseen]))
        files = ["--dataset", str(work / "train.json"), "--val_dataset", str(work / "unseen.json")]
        chosen = ["--model", model] if model else []
        steps = ["--gradient_accumulation_steps", str(per_step), "--output_dir", str(work / "out")]
        words = [*files, *chosen, *steps, *FLAGS.split()]
        subprocess.run([sys.executable, "-m", "swiftune.cli.main", "sft", *words], check=True)
        args = parse(SftArguments, words)
        opened = open_tokenizer(args)
        data = prepare(args, opened, 1)
        assert data.val is not None
        val = [data.val[i] for i in range(len(data.val))]
        (adapter,) = (work / "out").glob(f"v*/checkpoint-{data.feed.steps}")
        base = load_model(opened.folder, dtype=DTYPE)
        untrained = evaluate(base, val)
        ours = evaluate(load_adapter(base, adapter), val)
        plain = evaluate(train_plainly(args, opened, data.feed), val)
    for name, loss in (("nobody", untrained), ("Transformers + PEFT", plain), ("swift sft", ours)):
        report.add(name, round(loss, 5), 100 * (loss / plain - 1))
    return report


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in this file")
    words = parser.parse_args()
    keep(run(words.dataset), words.json)


if __name__ == "__main__":
    main()
