"""Samples without a store: read again in every epoch, mixed, and shuffled in a buffer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from swiftune.data.dataset import Dataset, Find
from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger
from swiftune.types import Sample, SetAside


def stream_samples(
    names: Sequence[str],
    find: Find,
    *,
    ledger: Ledger,
    columns: Mapping[str, str] | None = None,
    seed: int = 42,
    identity: Identity | None = None,
    buffer_size: int = 1000,
    interleave_prob: Sequence[float] | None = None,
    stopping_strategy: str = "first_exhausted",
    needs_answer: bool = True,
) -> SampleStream:
    """The samples of all the named data sets, as a stream. The files are looked for now, and read when iterated.

    ``#N`` takes the first N usable rows (all, where there are fewer); ``#P%`` takes rows at even distances.

    Args:
        buffer_size: rows held for shuffling; 1 keeps the order of the files.
        interleave_prob: how often each set is drawn from, together 1; without it one set follows the other.
        stopping_strategy: ``first_exhausted`` ends an epoch where one set ends, ``all_exhausted`` begins a set anew
            until all have ended. Only with ``interleave_prob``.

    Raises:
        UsageError: a name that makes no sense. While iterating: DataError.
    """
    datasets = [Dataset.find(name, find, columns, identity, needs_answer) for name in names]
    odds = list(interleave_prob or [])
    return SampleStream(datasets, ledger, seed, buffer_size, odds, stopping_strategy == "all_exhausted")


class SampleStream(Iterable[Sample]):
    """Iterating goes on from where one is, epoch after epoch without end.

    The ledger counts a row each time it is drawn; in the second epoch it counts again.

    Attributes:
        epoch: the epoch that the next sample is of, from 0.
        taken: samples taken in this epoch.
    """

    def __init__(
        self, datasets: list[Dataset], ledger: Ledger, seed: int, buffer_size: int, odds: list[float], to_the_last: bool
    ) -> None:
        self.epoch = 0
        self.taken = 0
        self._datasets = datasets
        self._ledger = ledger
        self._seed = seed
        self._buffer_size = buffer_size
        self._odds = odds
        self._to_the_last = to_the_last

    def state(self) -> dict[str, int]:
        """Where one is: ``epoch`` and ``taken``."""
        return {"epoch": self.epoch, "taken": self.taken}

    def go_to(self, state: Mapping[str, int]) -> None:
        """Has the next iteration go on from there; the rows before are read once more and passed over."""
        self.epoch, self.taken = state["epoch"], state["taken"]

    def __iter__(self) -> Iterator[Sample]:
        while True:
            for sample in itertools.islice(self._of_epoch(self.epoch), self.taken, None):
                self.taken += 1
                yield sample
            self.epoch, self.taken = self.epoch + 1, 0

    def _of_epoch(self, epoch: int) -> Iterator[Sample]:
        rng = np.random.default_rng([self._seed, epoch])
        mixed = self._interleaved(rng) if self._odds else itertools.chain(*map(self._rows, self._datasets))
        for sample in _shuffled(mixed, self._buffer_size, rng):
            self._ledger.use()
            yield sample

    def _interleaved(self, rng: np.random.Generator) -> Iterator[Sample]:
        streams = [self._rows(dataset) for dataset in self._datasets]
        ended: set[int] = {number for number, odds in enumerate(self._odds) if odds == 0}
        while True:
            drawn = int(rng.choice(len(streams), p=self._odds))
            try:
                sample = next(streams[drawn])
            except StopIteration:
                ended.add(drawn)
                if not self._to_the_last or len(ended) == len(streams):
                    return
                streams[drawn] = self._rows(self._datasets[drawn])
                sample = next(streams[drawn])
            yield sample

    def _rows(self, dataset: Dataset) -> Iterator[Sample]:
        """The wanted samples of one data set."""
        share = Fraction(dataset.name.percent or 100) / 100
        usable = 0
        faults: list[SetAside] = []
        for row in dataset.rows():
            if isinstance(row, SetAside):
                self._ledger.set_aside(row.place, row.reason, row.detail)
                if not usable and len(faults) < 100:
                    faults.append(row)
                continue
            times = math.ceil((usable + 1) * share) - math.ceil(usable * share)
            usable += 1
            yield from itertools.repeat(row, times)
            if usable == dataset.name.count:
                return
        if not usable:
            raise dataset.no_rows(faults)


def _shuffled(samples: Iterable[Sample], size: int, rng: np.random.Generator) -> Iterator[Sample]:
    """Each sample read takes the place of one drawn from the buffer."""
    if size <= 1:
        yield from samples
        return
    buffer: list[Sample] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = int(rng.integers(size))
        yield buffer[place]
        buffer[place] = sample
    for place in rng.permutation(len(buffer)):
        yield buffer[place]
