"""Samples to rows of tokens as they are needed, for streams: nothing is kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from swiftune.data.ledger import RowFault
from swiftune.data.stream import SampleStream, dump, load
from swiftune.data.tokens import TruncationStrategy, fit, nothing_left
from swiftune.types import Row, Sample

if TYPE_CHECKING:
    from swiftune.data.render import Renderer

_AHEAD = 64
"""Samples that are rendered and encoded at once."""


class TokenStream:
    """What ``tokenize`` does, for samples without end.

    Args:
        samples: whose ledger is told of those that are no row.
        renderer, max_length, truncation_strategy, min_response: as of ``tokenize``.
    """

    def __init__(
        self,
        samples: SampleStream,
        renderer: Renderer,
        *,
        max_length: int,
        truncation_strategy: TruncationStrategy = "delete",
        min_response: int = 0,
    ) -> None:
        self._samples = samples
        self._renderer = renderer
        self._max_length = max_length
        self._strategy = truncation_strategy
        self._min_response = min_response
        self._taken: list[tuple[Sample, Row]] = []
        """The last ``take``."""
        self._ahead: list[tuple[Sample, Row]] = []
        """What is read ahead, a batch at a time."""
        self._any_row = False

    def peek(self) -> Row:
        """The row that comes next.

        Raises:
            DataError: the samples cannot be read, or an epoch has ended and none of them was a row.
        """
        faults: list[tuple[Sample, str, str]] = []
        while not self._ahead:
            self._ahead, more = self._rows(list(itertools.islice(self._samples, _AHEAD)))
            self._any_row |= bool(self._ahead)
            faults = [*faults, *more][:1000]
            if not self._any_row and self._samples.epoch:
                raise nothing_left(faults, self._max_length)  # it would go on so for ever
        return self._ahead[0][1]

    def take(self, count: int) -> list[Row]:
        """The next rows."""
        self._taken = []
        while len(self._taken) < count:
            self.peek()
            more = count - len(self._taken)
            self._taken, self._ahead = self._taken + self._ahead[:more], self._ahead[more:]
        return [row for _, row in self._taken]

    def state(self, *, again: bool = False) -> dict[str, Any]:
        """Where one is, as JSON has it: the samples read ahead, and where reading is behind them.

        Args:
            again: where one was before the last ``take``.
        """
        ahead = [*self._taken, *self._ahead] if again else self._ahead
        return {
            "samples": self._samples.state(),
            "ahead": [dump(sample) for sample, _ in ahead],
            "any_row": self._any_row,
            "ledger": self._samples.ledger.state(),
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; the ledger has what it had then.

        Raises:
            CheckpointError: the files are not what they were.
        """
        self._samples.go_to(state["samples"])
        self._samples.ledger.go_to(state["ledger"])
        self._any_row = state["any_row"]
        self._taken, (self._ahead, _) = [], self._rows(list(map(load, state["ahead"])))

    def _rows(self, samples: list[Sample]) -> tuple[list[tuple[Sample, Row]], list[tuple[Sample, str, str]]]:
        """The samples that are rows, and those that are none: they are withdrawn."""
        rows: list[tuple[Sample, Row]] = []
        faults: list[tuple[Sample, str, str]] = []
        for sample, row in zip(samples, self._renderer.rows(samples), strict=True):
            fitted = fit(row, self._max_length, self._strategy, self._min_response)
            if isinstance(fitted, RowFault):
                self._samples.ledger.withdraw(sample.place, fitted.reason, fitted.detail)
                faults.append((sample, fitted.reason, fitted.detail))
            else:
                rows.append((sample, fitted))
        return rows, faults
