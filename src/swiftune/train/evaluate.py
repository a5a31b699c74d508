"""Loss and accuracy on rows that are not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from swiftune.runtime.stop import StopRequest
from swiftune.train.feed import RowStore
from swiftune.train.lanes import Lanes
from swiftune.train.out_of_memory import within_memory
from swiftune.train.pack import pack
from swiftune.train.plan import Layout
from swiftune.types import Row

if TYPE_CHECKING:
    from accelerate import Accelerator

WINDOW = 1024
"""Rows that are laid out together."""


@torch.no_grad()
def evaluate(
    objective: torch.nn.Module,
    store: RowStore,
    *,
    layout: Layout,
    lanes: Lanes,
    accelerator: Accelerator,
    stop: StopRequest,
) -> dict[str, float] | None:
    """``eval_loss`` (nats per supervised token) and ``eval_acc`` over all rows and processes.

    Returns:
        ``None`` where the evaluation was cut short.

    Raises:
        OutOfMemoryError: a row does not fit into the memory.
    """
    was_training = objective.training
    objective.eval()
    double = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(3, dtype=double)  # loss, right predictions, supervised tokens

    def compute(work: list[list[list[Row]]]) -> torch.Tensor | None:
        @torch.no_grad()
        def lane(number: int) -> torch.Tensor:
            sums = torch.zeros(3, dtype=double)
            for rows in work[number]:
                if stop and accelerator.num_processes == 1:
                    break
                loss, correct = objective(pack(rows, accelerator.device, share=layout.share))
                sums += torch.tensor([loss.item(), correct.item(), sum(row.supervised for row in rows)])
            return sums

        total = torch.stack(lanes.run(lane)).sum(0)
        return None if stop and accelerator.num_processes == 1 else total

    try:
        for start in range(0, len(store), WINDOW):
            if accelerator.num_processes > 1:  # all of them stop, or none: they wait for each other
                asked = torch.tensor(int(bool(stop)), device=accelerator.device)
                if accelerator.reduce(asked, "sum"):
                    return None
            rows = [store[i] for i in range(start, min(start + WINDOW, len(store)))]
            found = within_memory(compute, rows, layout, accelerator)
            if found is None:
                return None
            sums += found
    finally:
        objective.train(was_training)
    loss, correct, count = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    return {"eval_loss": loss / max(count, 1), "eval_acc": correct / max(count, 1)}
