"""Training throughput beside plain Transformers + PEFT: ``python -m benchmarks.training``.

The built-in model, LoRA 8/32 on all linear layers with dropout 0.05: packed rows in lanes, our LoRA layers,
head and loss on supervised tokens; against PEFT's layers and Transformers' loss, one row at a time (as batch 1 x N is
run elsewhere) and in padded batches of 4. All in this process, in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measure import (
    DTYPE,
    DTYPE_NAME,
    Report,
    Run,
    autocast,
    command,
    in_turn,
    machine,
    peak_flops,
    step_flops,
)
from swiftune import hub
from swiftune.config import SftArguments
from swiftune.models.load import load_model
from swiftune.runtime import hardware
from swiftune.train.lanes import Lanes, fitting, side_by_side
from swiftune.train.objective import SupervisedObjective
from swiftune.train.plan import Layout, pair_work
from swiftune.tuners import attach_lora, speed_up
from swiftune.types import IGNORE, Row

BUDGET = 2048
PADDED = 4
"""Rows in a padded batch."""
CPU = torch.device("cpu")
MIXED = [int(length) for length in np.random.default_rng(1).lognormal(5, 0.8, 8).clip(20, 1024)]
STEPS = {"16 of 50": [50] * 16, "8 of 400": [400] * 8, "2 of 2,048": [2048] * 2, "a mixture of 8": MIXED}


def rows(lengths: Sequence[int], vocabulary: int) -> list[Row]:
    """Random rows whose second half is supervised."""
    rng = np.random.default_rng(0)
    made = []
    for length in lengths:
        ids = rng.integers(vocabulary // 2, vocabulary, length).astype(np.int32)
        labels = ids.copy()
        labels[: length // 2] = IGNORE
        made.append(Row(ids, labels, (length,)))
    return made


def tuned(model: str | None) -> Any:
    """The model with LoRA, the same in every call."""
    torch.manual_seed(0)
    return attach_lora(load_model(hub.find_model(model), dtype=DTYPE), SftArguments()).train()


def ours(model: Any, step: list[Row]) -> Run:
    """One step as ``swift sft`` runs it. ``model`` has the fast layers."""
    objective = SupervisedObjective(model).train()
    forward = objective.forward
    objective.forward = autocast()(forward)  # type: ignore[method-assign]
    lanes = Lanes(fitting(model, CPU, processes=1))
    budget = max(BUDGET // lanes.count, *(len(row.ids_T) for row in step))
    layout = Layout(budget, 1, pair_work(model.config), lanes.count, share=objective.shares)
    supervised = sum(row.supervised for row in step)

    def run() -> None:
        work = [[[step[i] for i in batch] for batch in lane] for lane in layout.plan(step)]
        side_by_side(lanes, objective, work, supervised, share=layout.share)
        model.zero_grad()

    return run


def plain(model: Any, step: list[Row], size: int) -> Run:
    """The same step by Transformers and PEFT alone, ``size`` rows at a time, the shorter ones padded."""
    batches = [_padded(step[start : start + size]) for start in range(0, len(step), size)]

    def run() -> None:
        for batch in batches:
            with autocast():
                loss = model(**batch, use_cache=False).loss
            loss.backward()
        model.zero_grad()

    return run


def _padded(batch: list[Row]) -> dict[str, torch.Tensor]:
    longest = max(len(row.ids_T) for row in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.int64)
    labels_BT = torch.full_like(ids_BT, IGNORE)
    mask_BT = torch.zeros_like(ids_BT)
    for i, row in enumerate(batch):
        length = len(row.ids_T)
        ids_BT[i, :length] = torch.from_numpy(row.ids_T.astype(np.int64))
        labels_BT[i, :length] = torch.from_numpy(row.labels_T.astype(np.int64))
        mask_BT[i, :length] = 1
    return {"input_ids": ids_BT, "labels": labels_BT} | ({"attention_mask": mask_BT} if len(batch) > 1 else {})


def run(steps: dict[str, list[int]] = STEPS, repeats: int = 2, model: str | None = None) -> Report:
    """Times a step of every kind."""
    report = Report(
        f"training, tokens/s, {machine()}",
        ("rows", "tokens", "one by one", "padded", "ours", "times one by one", "times padded", "MFU"),
    )
    hardware.keep_freed_memory()
    slow, fast = tuned(model), tuned(model)
    speed_up(fast)
    peak = peak_flops()
    for name, lengths in steps.items():
        step = rows(lengths, slow.config.vocab_size)
        tokens, supervised = sum(lengths), sum(row.supervised for row in step)
        times = in_turn([plain(slow, step, 1), plain(slow, step, PADDED), ours(fast, step)], repeats)
        share = step_flops(slow.config, lengths, supervised) / times.median(2) / peak
        speeds = [tokens / times.median(i) for i in range(3)]
        report.add(name, tokens, *speeds, times.ratio(0), times.ratio(1), share)
    report.notes.append(
        f"MFU: of {peak / 1e9:.0f} GFLOP/s in {DTYPE_NAME}, a product of 2,048 x 2,048 measured just before."
    )
    return report


if __name__ == "__main__":
    command(run)
