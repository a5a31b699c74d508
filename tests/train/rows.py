"""Random rows, and the plain computation that packed training must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from swiftune.types import IGNORE, Row


def random_row(rng: np.random.Generator, vocabulary: int, length: int) -> Row:
    """A row whose second part is supervised."""
    ids = rng.integers(0, vocabulary, length).astype(np.int32)
    labels = ids.copy()
    labels[: length // 3] = IGNORE
    return Row(ids, labels, (length,))


def random_rows(seed: int, count: int, vocabulary: int = 600, longest: int = 40) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [random_row(rng, vocabulary, int(n)) for n in rng.integers(4, longest, count)]


def plain_loss(model: Any, row: Row) -> tuple[torch.Tensor, int]:
    """Sum of the losses of one row by Transformers' own forward, and how many labels it has. No code of ours."""
    ids = torch.tensor(row.ids_T.astype(np.int64))[None]
    labels = torch.tensor(row.labels_T.astype(np.int64))[None]
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], reduction="sum")
    return loss, int((labels[0, 1:] != IGNORE).sum())


def plain_gradient(model: Any, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss over all supervised tokens of ``rows``, one row at a time."""
    model.zero_grad()
    total = sum(plain_loss(model, row)[1] for row in rows)
    for row in rows:
        (plain_loss(model, row)[0] / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """‖a−b‖/‖b‖ of the whole gradient.

    Not by tensor: the gradient of a key bias all but cancels (softmax does not see a shift of all scores), so that
    float32 leaves no six digits of it in any order of summation, Transformers' own included.
    """
    assert a.keys() == b.keys()
    difference = torch.cat([(a[k] - b[k]).flatten() for k in b])
    return float(difference.norm() / torch.cat([b[k].flatten() for k in b]).norm())
