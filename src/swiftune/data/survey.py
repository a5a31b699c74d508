"""What rows are like: how long, how much of them is learned, which answers come again. Gathered a row at a time."""

from __future__ import annotations

import hashlib
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swiftune.types import Row, Sample

SHORT_ANSWER = 5
"""Learned tokens below which an answer is very short, the end of the answer among them."""
CLASSES = 1000
"""Classes that are told apart; a column of more of them is no class."""
OTHERS = "(others)"
NONE = "(none)"


class Lengths:
    """Numbers of tokens, every one of them counted: what is said about them is exact.

    Args:
        counts: how often there is each length.
    """

    def __init__(self, counts: Mapping[int, int]) -> None:
        self._lengths_V = np.array(sorted(counts), np.int64)
        self._counts_V = np.array([counts[length] for length in self._lengths_V.tolist()], np.int64)
        self._ends_V = np.cumsum(self._counts_V)
        self.count = int(self._counts_V.sum())
        self.total = int(self._lengths_V @ self._counts_V)

    @property
    def mean(self) -> float:
        """0 where there is nothing."""
        return self.total / self.count if self.count else 0.0

    @property
    def longest(self) -> int:
        """0 where there is nothing."""
        return int(self._lengths_V[-1]) if self.count else 0

    def percentile(self, percent: float) -> float:
        """As ``numpy.percentile`` has it: between two lengths the line that joins them. 0 where there is nothing."""
        if not self.count:
            return 0.0
        place = (self.count - 1) * percent / 100
        below, above = self._at(math.floor(place)), self._at(math.ceil(place))
        return below + (above - below) * (place - math.floor(place))

    def covering(self, percent: float) -> int:
        """The least length that so many percent of the rows are not longer than. 0 where there is nothing."""
        return self._at(max(0, math.ceil(self.count * percent / 100) - 1)) if self.count else 0

    def over(self, length: float) -> int:
        """How many are longer."""
        return int(self._counts_V[self._lengths_V > length].sum())

    def bars(self, most: int = 24) -> list[tuple[int, int, int]]:
        """From, to (both included), how many: of equal width, the longest hundredth in a last, wider one."""
        if not self.count:
            return []
        shortest, top = int(self._lengths_V[0]), self.covering(99)
        width = next(w for step in range(31) for w in (2**step, 3 * 2**step // 2) if w * most >= top - shortest + 1)
        edges = [step * width for step in range(shortest // width, top // width + 2)]
        edges += [self.longest + 1] if self.longest >= edges[-1] else []
        return [
            (low, high - 1, int(self._counts_V[(self._lengths_V >= low) & (self._lengths_V < high)].sum()))
            for low, high in itertools.pairwise(edges)
        ]

    def _at(self, place: int) -> int:
        return int(self._lengths_V[np.searchsorted(self._ends_V, place, side="right")])


@dataclass
class Survey:
    """Of the rows that would be used."""

    lengths: Counter[int] = field(default_factory=Counter)
    """Tokens of a row's longest sequence, which ``max_length`` is about; of rows that are too long, too."""
    learned: Counter[int] = field(default_factory=Counter)
    """Learned tokens."""
    tokens: int = 0
    """Of all rows together."""
    turns: Counter[int] = field(default_factory=Counter)
    """Answers of a conversation."""
    with_system: int = 0
    with_tools: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    channels: Counter[str | None] = field(default_factory=Counter)
    labels: Counter[str | None] = field(default_factory=Counter)
    answers: array[int] = field(default_factory=lambda: array("Q"))
    """A hash of every row's last answer."""

    def measure(self, row: Row) -> None:
        """Takes the length of a row, be it too long."""
        self.lengths[max(row.lengths)] += 1

    def use(self, sample: Sample, row: Row) -> None:
        """Takes everything about a row that would be used."""
        self.tokens += len(row.ids_T)
        self.learned[row.supervised] += 1
        self.turns[sum(message["role"] == "assistant" for message in sample.messages)] += 1
        self.with_system += sample.messages[0]["role"] == "system"
        self.with_tools += sample.tools is not None
        self.formats[sample.format] += 1
        for counts, name in ((self.channels, sample.channel), (self.labels, sample.label)):
            counts[name if name in counts or len(counts) < CLASSES else OTHERS] += 1
        self.answers.append(_hash(answer_of(sample)))

    @property
    def rows(self) -> int:
        """Rows that would be used."""
        return len(self.answers)

    def repeated(self, most: int) -> tuple[int, list[tuple[int, int]]]:
        """How many rows have an answer that another row has, and the most frequent ones: a row of it, how often."""
        _, first, counts = np.unique(np.frombuffer(self.answers, np.uint64), return_index=True, return_counts=True)
        again = np.flatnonzero(counts > 1)
        order = again[np.argsort(-counts[again], kind="stable")][:most]
        return int(counts[again].sum()), [(int(first[i]), int(counts[i])) for i in order]


def answer_of(sample: Sample) -> str:
    """What the last assistant message says; of a tool call nothing."""
    said = [message.get("content") or "" for message in sample.messages if message["role"] == "assistant"]
    return said[-1] if said else ""


def classes(counts: Mapping[str | None, int]) -> dict[str, int]:
    """How many rows each class has, the largest first; nothing where no row has one."""
    if not any(name for name in counts):
        return {}
    return {name or NONE: count for name, count in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))}


def summary(lengths: Lengths) -> dict[str, Any]:
    """The figures of a distribution, as JSON has them."""
    return {
        "mean": round(lengths.mean, 2),
        "median": lengths.percentile(50),
        "p95": lengths.percentile(95),
        "p99": lengths.percentile(99),
        "max": lengths.longest,
        "total": lengths.total,
    }


def every(count: int, most: int) -> range:
    """Places of at most ``most`` of ``count`` rows, at even distances."""
    return range(0, count, max(1, math.ceil(count / most)))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little")
