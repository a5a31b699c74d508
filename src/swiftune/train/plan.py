"""How the rows of one optimizer step are laid out in micro-batches.

The rows of a step are known before it starts. They go, longest first, to the process with the least work, and there
into as few micro-batches of at most ``budget`` tokens as they need, filled evenly: the fullest one decides the peak
memory. The layout is a matter of speed only: losses are summed and divided by the step's total, so the gradient does
not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swiftune.types import Row

MicroBatchRows = list[int]
"""Positions of rows within their step."""


@dataclass
class Layout:
    """How the rows of a run are laid out; training and evaluation share one, so that a lowered budget holds for both.

    Args:
        budget: tokens in a micro-batch.
        processes: how many share a step.
        lanes: how many micro-batches a process computes at once.
        pair_work: the work of attending from one token to another, in units of a token's work in the linear layers.
        share: compute what all rows of a micro-batch begin with once.
    """

    budget: int
    processes: int = 1
    pair_work: float = 0.0
    lanes: int = 1
    share: bool = False

    def plan(self, rows: Sequence[Row]) -> list[list[MicroBatchRows]]:
        """The micro-batches of every lane of the first process, then of the second, and so on."""
        work = [len(row.ids_T) + self.pair_work * sum(n * n for n in row.lengths) for row in rows]
        return plan_step(
            [len(row.ids_T) for row in rows], budget=self.budget, processes=self.processes * self.lanes, work=work
        )


def pair_work(config: Any) -> float:
    """``Layout.pair_work`` of a model: the FLOPs of its matrix products, for rows that see only what stands before.

    Of a layer with hidden size D, intermediate size F, Q = query heads x head size and K = key heads x head size: a
    token costs 2(2DQ + 2DK + 3DF) in the linear layers, and of n tokens n²/2 pairs cost 4Q each.
    """
    text = config.get_text_config()
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    size = int(getattr(text, "head_dim", None) or hidden // heads)
    keys = size * int(getattr(text, "num_key_value_heads", None) or heads)
    wide = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return heads * size / (2 * hidden * heads * size + 2 * hidden * keys + 3 * hidden * wide)


def plan_step(
    lengths: Sequence[int], *, budget: int, processes: int = 1, work: Sequence[float] | None = None
) -> list[list[MicroBatchRows]]:
    """Lays rows out.

    Args:
        lengths: tokens of each row of the step.
        budget: tokens in a micro-batch; a longer row has one for itself.
        processes: how many share the step.
        work: what each row costs to compute, in any unit; by default its tokens.

    Returns:
        For every process its micro-batches, the same number for each; where rows are too few, some are empty.
    """
    work = work or lengths
    heaviest_first = sorted(range(len(lengths)), key=lambda i: (-work[i], i))
    shares = [sorted(share, key=lambda i: (-lengths[i], i)) for share in _spread(heaviest_first, work, processes)]
    fewest = [_fewest(share, lengths, budget) for share in shares]
    count = max(1, *map(len, fewest))
    return [
        _even(share, lengths, budget, count) or plan + [[] for _ in range(count - len(plan))]
        for share, plan in zip(shares, fewest, strict=True)
    ]


def _fewest(share: list[int], lengths: Sequence[int], budget: int) -> list[MicroBatchRows]:
    """As few micro-batches as can be found in a moment, never more than first fit needs."""
    within = _first_fit(share, lengths, budget)
    least = -(-sum(lengths[i] for i in share) // budget)
    evened = (_even(share, lengths, budget, count) for count in range(least, len(within) + 1))
    return next((plan for plan in evened if plan), within)


def _even(share: list[int], lengths: Sequence[int], budget: int, count: int) -> list[MicroBatchRows] | None:
    """``count`` micro-batches, as even as they are found, if they keep to the budget."""
    plan = _spread(share, lengths, count)
    kept = all(len(batch) < 2 or sum(lengths[i] for i in batch) <= budget for batch in plan)
    return plan if kept else None


def _spread(order: Iterable[int], weights: Sequence[float], bins: int) -> list[list[int]]:
    """Each to the lightest bin: with the heaviest first, at most 4/3 of the lowest maximum (R. L. Graham, 1969)."""
    filled: list[list[int]] = [[] for _ in range(bins)]
    weight = [0.0] * bins
    for i in order:
        lightest = weight.index(min(weight))
        filled[lightest].append(i)
        weight[lightest] += weights[i]
    return filled


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
