"""How sure a figure is: Wilson's interval for shares, the bootstrap for everything else; pass@k.

Shape legend: N questions, D numbers that are kept of each, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Total = Callable[[Array, int], float]
"""The figure of many questions: from the sum over them of what is kept of each (D), and their number."""

Interval = tuple[float, float]
RESAMPLES = 2000
_Z95 = 1.959963984540054
"""The normal distribution's 97.5th percentile."""


def mean(sums_D: Array, count: int) -> float:
    """The usual ``Total``."""
    return float(sums_D[0] / count)


def wilson(share: float, count: int) -> Interval:
    """95% interval of a share (Wilson 1927): it holds for few questions and for shares of 0 and 1, too."""
    centre = (share + _Z95**2 / (2 * count)) / (1 + _Z95**2 / count)
    half = _Z95 / (1 + _Z95**2 / count) * math.sqrt(share * (1 - share) / count + _Z95**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(kept_ND: Array, total: Total, *, seed: int) -> Interval:
    """95% interval of a figure: Wilson's where every question counts 0 or 100, else the percentile bootstrap's."""
    if total is mean and bool(np.isin(kept_ND, (0.0, 100.0)).all()):
        low, high = wilson(mean(kept_ND.sum(0), len(kept_ND)) / 100, len(kept_ND))
        return 100 * low, 100 * high
    return _percentiles([total(sums_D, len(kept_ND)) for (sums_D,) in _resampled(kept_ND, seed=seed)])


def paired_interval(kept_ND: Array, other_ND: Array, total: Total, *, seed: int) -> Interval:
    """95% interval of the difference, first minus other, of two figures over the same questions in the same order.

    The questions are drawn anew, the same ones for both (paired percentile bootstrap; Efron & Tibshirani 1993, 13.3).
    """
    count = len(kept_ND)
    pairs = _resampled(kept_ND, other_ND, seed=seed)
    return _percentiles([total(sums_D, count) - total(other_D, count) for sums_D, other_D in pairs])


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that of ``k`` out of ``samples`` programs, ``right`` of which are right, at least one is.

    Unbiased (arXiv:2107.03374, equation 1): 1 - C(n - c, k) / C(n, k).
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def _resampled(*each_ND: Array, seed: int) -> list[tuple[Array, ...]]:
    """B times, the sums over N questions drawn with replacement."""
    draw = np.random.default_rng(seed)
    count = len(each_ND[0])
    drawn = (np.bincount(draw.integers(0, count, count), minlength=count).astype(float) for _ in range(RESAMPLES))
    return [tuple(times_N @ kept_ND for kept_ND in each_ND) for times_N in drawn]


def _percentiles(figures_B: list[float]) -> Interval:
    low, high = np.percentile(figures_B, (2.5, 97.5))
    return float(low), float(high)
