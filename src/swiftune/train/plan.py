"""How the rows of one optimizer step are laid out in micro-batches.

The rows of a step are known before it starts. They go, longest first, to the process with the least work, and there
into micro-batches of at most ``budget`` tokens. The layout is a matter of speed only: losses are summed and divided by
the step's total, so the gradient does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

MicroBatchRows = list[int]
"""Positions of rows within their step."""


def plan_step(lengths: Sequence[int], *, budget: int, processes: int = 1) -> list[list[MicroBatchRows]]:
    """Lays rows out.

    Args:
        lengths: tokens of each row of the step.
        budget: tokens in a micro-batch; a longer row has one for itself.
        processes: how many share the step.

    Returns:
        For every process its micro-batches, the same number for each; where rows are too few, some are empty.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    work = [0] * processes
    shares: list[list[int]] = [[] for _ in range(processes)]
    for i in order:
        process = min(range(processes), key=lambda p: (work[p], p))
        shares[process].append(i)
        work[process] += lengths[i]
    plans = [_first_fit(share, lengths, budget) for share in shares]
    most = max(1, *map(len, plans)) if plans else 1
    for plan in plans:
        _even_out(plan, most)
    return plans


def _first_fit(share: list[int], lengths: Sequence[int], budget: int) -> list[MicroBatchRows]:
    """First-fit decreasing bin packing: at most 11/9 of the fewest possible micro-batches, plus one."""
    batches: list[MicroBatchRows] = []
    room: list[int] = []
    for i in share:
        for b, left in enumerate(room):
            if lengths[i] <= left:
                batches[b].append(i)
                room[b] -= lengths[i]
                break
        else:
            batches.append([i])
            room.append(budget - lengths[i])
    return batches


def _even_out(plan: list[MicroBatchRows], count: int) -> None:
    """Splits micro-batches of several rows, then adds empty ones, until there are ``count``."""
    while len(plan) < count:
        fullest = max(plan, key=len, default=[])
        half = len(fullest) // 2
        plan.append(fullest[half:] if half else [])
        if half:
            del fullest[half:]
