"""Loss and accuracy on rows that are not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from swiftune.runtime.stop import StopRequest
from swiftune.train.feed import RowStore
from swiftune.train.pack import pack
from swiftune.train.plan import plan_step

if TYPE_CHECKING:
    from accelerate import Accelerator

WINDOW = 1024
"""Rows that are laid out together."""


@torch.no_grad()
def evaluate(
    objective: torch.nn.Module, store: RowStore, *, budget: int, accelerator: Accelerator, stop: StopRequest
) -> dict[str, float] | None:
    """``eval_loss`` (nats per supervised token) and ``eval_acc`` over all rows and processes.

    Returns:
        ``None`` where the evaluation was cut short.
    """
    was_training = objective.training
    objective.eval()
    double = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(3, dtype=double)  # loss, right predictions, supervised tokens
    try:
        for start in range(0, len(store), WINDOW):
            indices = range(start, min(start + WINDOW, len(store)))
            lengths = [int(store.lengths[i]) for i in indices]
            plan = plan_step(lengths, budget=budget, processes=accelerator.num_processes)
            for positions in plan[accelerator.process_index]:
                if stop and accelerator.num_processes == 1:
                    return None
                rows = [store[indices[i]] for i in positions]
                loss, correct = objective(pack(rows, accelerator.device))
                sums += torch.tensor([loss.item(), correct.item(), sum(row.supervised for row in rows)])
    finally:
        objective.train(was_training)
    loss, correct, count = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    return {"eval_loss": loss / max(count, 1), "eval_acc": correct / max(count, 1)}
