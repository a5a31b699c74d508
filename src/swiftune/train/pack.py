"""Rows to a packed micro-batch. Shapes: T tokens of all its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from swiftune.types import IGNORE, MicroBatch, Row

Tokens: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

ALIGN = 32
"""Tokens are filled up to a multiple of this: oneDNN builds, and keeps, kernels for every new number of them."""
WORTH_SHARING = 8
"""Tokens, at least, that all sequences begin with before they are computed once for all of them."""


def pack(rows: Sequence[Row], device: torch.device, *, share: bool = False) -> MicroBatch:
    """Lays rows end to end; fewer than ``ALIGN`` tokens that belong to no row and are not supervised follow them.

    With ``share``, the tokens that all sequences begin with, such as the system prompt, come once, before the first:
    what stands behind them does not change what they are, so neither the losses nor the gradient change.

    Labels are shifted here: position t is labelled with the token that it predicts, and the last position of every
    sequence with ``IGNORE``. With no rows nothing is supervised and the gradient is zero: a process without rows in a
    step still takes part in it.
    """
    ids, labels = _sequences(rows)
    shared = _shared(ids, labels) if share else 0
    parts = [part[shared:] for part in ids]
    if shared:
        parts.insert(0, ids[0][:shared])
        labels.insert(0, np.full(2 * shared, IGNORE, np.int64))
    if rest := -sum(map(len, parts)) % ALIGN or (0 if rows else ALIGN):
        parts.append(np.zeros(rest, np.int64))
        labels.append(np.full(shared + rest, IGNORE, np.int64))
    lengths = [len(part) for part in parts]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids_T = np.concatenate(parts)
    labels_T = np.concatenate([part[shared:] for part in labels])
    positions_T = np.arange(len(ids_T)) - np.repeat(bounds[:-1], lengths)
    positions_T[shared:] += shared
    return MicroBatch(
        input_ids_1T=torch.from_numpy(ids_T)[None].to(device),
        labels_1T=torch.from_numpy(labels_T)[None].to(device),
        position_ids_1T=torch.from_numpy(positions_T)[None].to(device),
        cu_seqlens=bounds.tolist(),
        shared=shared,
    )


def _sequences(rows: Sequence[Row]) -> tuple[list[Tokens], list[Tokens]]:
    """The tokens of each sequence, and their labels, shifted."""
    ids: list[Tokens] = []
    labels: list[Tokens] = []
    for row in rows:
        start = 0
        for length in row.lengths:
            part = slice(start, start + length)
            ids.append(row.ids_T[part].astype(np.int64))
            labels.append(np.append(row.labels_T[part][1:], IGNORE).astype(np.int64))
            start += length
    return ids, labels


def _shared(ids: list[Tokens], labels: list[Tokens]) -> int:
    """Tokens that all sequences begin with and that predict nothing, if that is worth it; a token is left to each."""
    if len(ids) < 2:
        return 0
    most = min(map(len, ids)) - 1
    starts = np.stack([part[:most] for part in ids])
    silent = np.stack([part[:most] for part in labels]) == IGNORE
    same = (starts == starts[0]).all(axis=0) & silent.all(axis=0)
    count = most if same.all() else int(same.argmin())
    return count if count >= WORTH_SHARING else 0
