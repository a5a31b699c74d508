"""Which rows an optimizer step gets: the order of an epoch, and the place in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from swiftune.errors import CheckpointError
from swiftune.types import Row


class RowStore(Protocol):
    """Tokenized rows with random access."""

    lengths: np.ndarray

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class RowStream(Protocol):
    """Tokenized rows one after the other, without end."""

    def take(self, count: int) -> list[Row]: ...
    def state(self, *, again: bool = False) -> dict[str, Any]: ...
    def go_to(self, state: Mapping[str, Any]) -> None: ...


class Feed(Protocol):
    """Rows, step by step."""

    steps: int
    """Optimizer steps of the whole run."""

    def epoch(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        ...

    def take(self, step: int) -> list[Row]:
        """The rows of step number ``step`` (from 0), for all processes. A stream gives its steps in order."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """What ``go_to`` takes to have step number ``step`` come next; as JSON has it.

        The step is the one that was taken last, or the one behind it.
        """
        ...

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Goes to the place that ``state`` told, of this feed or of another one over the same data.

        Raises:
            CheckpointError: it is no place in this data.
        """
        ...


class EpochFeed:
    """Every row once an epoch, each epoch in an order of its own.

    Args:
        rows_per_step: batch size x accumulation x processes. The last step of an epoch has what is left.
        epochs: may be a fraction; ignored where ``max_steps`` is positive.
        shuffle: ``False`` keeps the order of the data set.
        seed: with the number of the epoch, it fixes the order.
    """

    def __init__(
        self, store: RowStore, rows_per_step: int, *, epochs: float, max_steps: int = -1, shuffle: bool, seed: int
    ) -> None:
        self.store, self.rows_per_step, self.shuffle, self.seed = store, rows_per_step, shuffle, seed
        self.steps_per_epoch = math.ceil(len(store) / rows_per_step)
        self.steps = max_steps if max_steps > 0 else max(1, math.ceil(self.steps_per_epoch * epochs))
        self._order: tuple[int, Sequence[int]] = (-1, [])

    def epoch(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        whole, part = divmod(step, self.steps_per_epoch)
        return whole + min(1.0, part * self.rows_per_step / len(self.store))

    def take(self, step: int) -> list[Row]:
        """The rows of step number ``step``."""
        epoch, part = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch_order(epoch))
        chosen = self._order[1][part * self.rows_per_step : (part + 1) * self.rows_per_step]
        return [self.store[int(i)] for i in chosen]

    def state(self, step: int) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: the number of the step is enough."""
        return {}

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Nothing: ``take`` goes anywhere."""

    def _epoch_order(self, epoch: int) -> Sequence[int]:
        if not self.shuffle:
            return range(len(self.store))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.store))  # type: ignore[return-value]


class StreamFeed:
    """Rows as a stream brings them, ``max_steps`` steps of them."""

    def __init__(self, rows: RowStream, rows_per_step: int, *, max_steps: int) -> None:
        self.rows, self.rows_per_step, self.steps = rows, rows_per_step, max_steps
        self._taken: int | None = None
        """The step that was taken last."""

    def epoch(self, step: int) -> float:
        """The length of an epoch is not known; the share of the run that is done."""
        return step / self.steps

    def take(self, step: int) -> list[Row]:
        """The next rows."""
        self._taken = step
        return self.rows.take(self.rows_per_step)

    def state(self, step: int) -> dict[str, Any]:
        """The place of the stream, before or behind the rows taken last."""
        return self.rows.state(again=step == self._taken)

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, without reading what lies before."""
        if not state:
            raise CheckpointError(
                "The checkpoint tells no place in a stream.",
                "Take one of a run with --streaming true, or its weights only: --resume_only_model true.",
            )
        self._taken = None
        self.rows.go_to(state)
