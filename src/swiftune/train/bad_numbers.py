"""Steps whose loss or gradient is not finite: they are not applied, and their rows are written down.

``bad_steps.jsonl`` in the run's folder has an object for each: ``step``, ``loss``, ``grad_norm``, and of each row
``text``, ``tokens`` and ``loss``, which shows the row that it was, if it was one row by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftune.train.pack import pack
from swiftune.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "bad_steps.jsonl"


def are_finite(*numbers: torch.Tensor) -> bool:
    """Whether none is infinite, or no number at all."""
    return all(bool(torch.isfinite(number).all()) for number in numbers)


@torch.no_grad()
def record(
    run: Path,
    step: int,
    rows: Sequence[Row],
    objective: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    **figures: torch.Tensor,
) -> None:
    """Appends a step to ``bad_steps.jsonl``.

    Args:
        rows: of the step.
        objective: computes the loss of each row by itself, in evaluation mode.
        figures: what was found of the step as a whole.

    Raises:
        OSError: the file cannot be written.
    """
    was_training = objective.training
    objective.eval()
    device = next(objective.parameters()).device
    losses = [float(objective(pack([row], device)).loss) / max(row.supervised, 1) for row in rows]
    objective.train(was_training)
    entry: dict[str, Any] = {"step": step} | {name: str(float(value)) for name, value in figures.items()}
    entry["rows"] = [
        {"text": tokenizer.decode(row.ids_T.tolist()), "tokens": len(row.ids_T), "loss": str(loss)}
        for row, loss in zip(rows, losses, strict=True)
    ]
    with (run / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
