"""Rows to a packed micro-batch. Shapes: T tokens of all its sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from swiftune.types import IGNORE, MicroBatch, Row

ALIGN = 32
"""Tokens are filled up to a multiple of this: oneDNN builds, and keeps, kernels for every new number of them."""


def pack(rows: Sequence[Row], device: torch.device) -> MicroBatch:
    """Lays rows end to end; fewer than ``ALIGN`` tokens that belong to no row and are not supervised follow them.

    Labels are shifted here: position t is labelled with the token that it predicts, and the last position of every
    sequence with ``IGNORE``. With no rows nothing is supervised and the gradient is zero: a process without rows in a
    step still takes part in it.
    """
    rest = -sum(len(row.ids_T) for row in rows) % ALIGN or (0 if rows else ALIGN)
    if rest:
        rows = [*rows, Row(np.zeros(rest, np.int32), np.full(rest, IGNORE, np.int32), (rest,))]
    lengths = [length for row in rows for length in row.lengths]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids_T = np.concatenate([row.ids_T for row in rows]).astype(np.int64)
    labels_T = np.concatenate([row.labels_T for row in rows]).astype(np.int64)
    labels_T = np.append(labels_T[1:], IGNORE)
    labels_T[bounds[1:] - 1] = IGNORE
    positions_T = np.arange(len(ids_T)) - np.repeat(bounds[:-1], lengths)
    return MicroBatch(
        input_ids_1T=torch.from_numpy(ids_T)[None].to(device),
        labels_1T=torch.from_numpy(labels_T)[None].to(device),
        position_ids_1T=torch.from_numpy(positions_T)[None].to(device),
        cu_seqlens=bounds.tolist(),
    )
