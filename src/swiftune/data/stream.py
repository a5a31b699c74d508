"""Samples without a store: read again in every epoch, mixed, and shuffled in a buffer."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from swiftune.data.dataset import Dataset, Find
from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger, entry_of
from swiftune.data.sources import shorten
from swiftune.data.spot import Spot
from swiftune.errors import CheckpointError
from swiftune.types import Place, Sample, SetAside

_FAULTS = 100
"""Rows at fault that are kept for the message that none of a data set can be used."""


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


class SampleStream(Iterator[Sample]):
    """Samples epoch after epoch, without end.

    The ledger counts a row each time it is drawn; in the second epoch it counts again.

    Attributes:
        epoch: the epoch of the last sample, from 0.
        ledger: is told of every row.
    """

    def __init__(
        self, datasets: list[Dataset], ledger: Ledger, seed: int, buffer_size: int, odds: list[float], to_the_last: bool
    ) -> None:
        self._datasets = datasets
        self.ledger = ledger
        self._seed = seed
        self._buffer_size = buffer_size
        self._odds = odds
        self._to_the_last = to_the_last
        self._looks = [list(map(_look_of, dataset.files)) for dataset in datasets]
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._rng = np.random.default_rng([self._seed, epoch])
        self._sets = [_Wanted(dataset, self.ledger) for dataset in self._datasets]
        self._ended = {number for number, odds in enumerate(self._odds) if odds == 0}
        self._buffer: list[Sample] = []
        self._emptying = False
        """Whether all is read, so that only the buffer's samples are left, in their order from the last on."""

    def state(self) -> dict[str, Any]:
        """Where one is, as JSON has it. The samples of the buffer are most of it."""
        return {
            "files": self._looks,
            "epoch": self.epoch,
            "random": self._rng.bit_generator.state,
            "sets": [wanted.state() for wanted in self._sets],
            "ended": sorted(self._ended),
            "buffer": list(map(dump, self._buffer)),
            "emptying": self._emptying,
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Goes on from there. What lies before is not read again.

        Raises:
            CheckpointError: the files are not what they were.
        """
        self._refuse_changed(state["files"])
        self._begin(state["epoch"])
        self._rng.bit_generator.state = state["random"]
        for wanted, place in zip(self._sets, state["sets"], strict=True):
            wanted.go_to(place)
        self._ended = set(state["ended"])
        self._buffer = list(map(load, state["buffer"]))
        self._emptying = state["emptying"]

    def _refuse_changed(self, then: list[list[list[Any]]]) -> None:
        """Raises CheckpointError where the files are not what they were."""
        cure = "Give it the data as it was, or take the weights only: --resume_only_model true."
        names_then, names_now = ([[look[0] for look in looks] for looks in sets] for sets in (then, self._looks))
        if names_then != names_now:
            was, is_now = (shorten("; ".join(map(", ".join, names))) for names in (names_then, names_now))
            raise CheckpointError(
                f"The checkpoint is at a place in the files {was}, and --dataset leads to {is_now}.", cure
            )
        files = itertools.chain.from_iterable(dataset.files for dataset in self._datasets)
        looks = (itertools.chain.from_iterable(sets) for sets in (then, self._looks))
        for file, before, after in zip(files, *looks, strict=True):
            if before != after:
                was, is_now = (f"{size:,} bytes of {datetime.fromtimestamp(at)}" for _, size, at in (before, after))
                raise CheckpointError(
                    f"{file} has changed since the checkpoint was written ({was} then, {is_now} now): the place in it "
                    "is not known any more.",
                    cure,
                )

    def __next__(self) -> Sample:
        while (sample := self._shuffled()) is None:
            self._begin(self.epoch + 1)
        self.ledger.use()
        return sample

    def _shuffled(self) -> Sample | None:
        """The epoch's next sample. Each sample read takes the place of one drawn from the buffer."""
        while not self._emptying:
            sample = self._interleaved() if self._odds else self._one_after_the_other()
            if sample is None:
                self._emptying = True
                self._buffer = [self._buffer[place] for place in self._rng.permutation(len(self._buffer))]
            elif len(self._buffer) < self._buffer_size:
                self._buffer.append(sample)
            else:
                place = int(self._rng.integers(self._buffer_size))
                drawn, self._buffer[place] = self._buffer[place], sample
                return drawn
        return self._buffer.pop() if self._buffer else None

    def _one_after_the_other(self) -> Sample | None:
        return next(itertools.chain.from_iterable(self._sets), None)

    def _interleaved(self) -> Sample | None:
        drawn = int(self._rng.choice(len(self._sets), p=self._odds))
        sample = next(self._sets[drawn], None)
        if sample is None:
            self._ended.add(drawn)
            if self._to_the_last and len(self._ended) < len(self._sets):
                self._sets[drawn] = _Wanted(self._datasets[drawn], self.ledger)
                sample = next(self._sets[drawn])
        return sample


class _Wanted(Iterator[Sample]):
    """The wanted samples of one data set, once through."""

    def __init__(self, dataset: Dataset, ledger: Ledger) -> None:
        self._dataset = dataset
        self._ledger = ledger
        self._share = Fraction(dataset.name.percent or 100) / 100
        self._spot = Spot()
        self._rows = dataset.rows(self._spot)
        self._usable = 0
        self._faults: list[SetAside] = []
        """The first ones, as long as no row is usable."""
        self._ready: list[Sample] = []
        """The last row read, as often as it is still to be given."""

    def state(self) -> dict[str, Any]:
        return {
            "spot": asdict(self._spot),
            "usable": self._usable,
            "faults": [asdict(fault) for fault in self._faults],
            "ready": list(map(dump, self._ready)),
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        self._spot = Spot(**state["spot"])
        self._rows = self._dataset.rows(self._spot)
        self._usable = state["usable"]
        self._faults = list(map(entry_of, state["faults"]))
        self._ready = list(map(load, state["ready"]))

    def __next__(self) -> Sample:
        while not self._ready:
            row = None if self._usable == self._dataset.name.count else next(self._rows, None)
            if row is None:
                if not self._usable:
                    raise self._dataset.no_rows(self._faults)
                raise StopIteration
            if isinstance(row, SetAside):
                self._ledger.set_aside(row.place, row.reason, row.detail)
                if not self._usable and len(self._faults) < _FAULTS:
                    self._faults.append(row)
                continue
            given = math.ceil(self._usable * self._share)
            self._usable, self._faults = self._usable + 1, []
            self._ready = [row] * (math.ceil(self._usable * self._share) - given)
        return self._ready.pop()


def dump(sample: Sample) -> str:
    """A sample as text. Text in a state is one value, however deep the sample is."""
    return json.dumps([sample.place.file, sample.place.line, sample.messages, sample.tools], ensure_ascii=False)


def load(text: str) -> Sample:
    """The sample of a text that ``dump`` made."""
    file, line, messages, tools = json.loads(text)
    return Sample(messages, Place(file, line), tools)


def _look_of(file: Path) -> list[Any]:
    """What tells whether a file is still the same: its name, its bytes, the second of its last change."""
    about = file.stat()
    return [file.name, about.st_size, int(about.st_mtime)]
