"""One data set as it was named, found: its files, and its rows as samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from swiftune.data.files import find_files
from swiftune.data.formats import KNOWN, to_sample
from swiftune.data.identity import Identity, is_self_cognition
from swiftune.data.ledger import RowFault
from swiftune.data.names import DatasetName
from swiftune.data.sources import read_rows
from swiftune.data.spot import Spot
from swiftune.errors import DataError
from swiftune.types import RawRow, Sample, SetAside

Find = Callable[[str], Path]
"""Where the data set of an id or path is: a file or a folder (``hub.find_dataset``)."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Dataset:
    """One named data set, found: what to read, and how."""

    name: DatasetName
    files: list[Path]
    columns: Mapping[str, str]
    identity: Identity | None
    """Set where placeholders are to be filled."""
    needs_answer: bool

    @classmethod
    def find(
        cls, text: str, find: Find, columns: Mapping[str, str] | None, who: Identity | None, needs_answer: bool
    ) -> Dataset:
        """Parses the name and finds its files."""
        name = DatasetName.parse(text)
        filled = (who or Identity()).or_default() if is_self_cognition(name.id) else None
        return cls(name, find_files(find(name.id), name.subset), columns or {}, filled, needs_answer)

    def rows(self, spot: Spot | None = None) -> Iterator[Sample | SetAside]:
        """Every row from ``spot`` on, which is moved along: as a sample, or as what is wrong with it."""
        spot = spot or Spot()
        for file in self.files[spot.file :]:
            for raw in read_rows(file, spot):
                if isinstance(raw, SetAside):
                    yield raw
                    continue
                if self.identity:
                    raw = RawRow(raw.place, self.identity.fill(raw.value))
                try:
                    yield to_sample(raw, self.columns, needs_answer=self.needs_answer)
                except RowFault as fault:
                    yield SetAside(raw.place, fault.reason, fault.detail)
            spot.next_file()

    def no_rows(self, faults: Iterable[SetAside]) -> DataError:
        """What to raise where no row of the data set can be used."""
        kinds: dict[tuple[str, str], SetAside] = {}
        for entry in itertools.islice(faults, 1000):
            kinds.setdefault((entry.reason, entry.detail), entry)
        seen = list(kinds.values())[:_SHOWN]
        if not seen:
            where = ", ".join(str(file) for file in self.files[:_SHOWN]) + (", …" if len(self.files) > _SHOWN else "")
            return DataError(f"The data set {self.name.id} holds no rows: {where}.", "Check that the file is whole.")
        shown = "".join(f"\n  {e.place}: {e.reason}{f': {e.detail}' if e.detail else ''}" for e in seen)
        return DataError(
            f"No row of the data set {self.name.id} can be used:{shown}",
            f'\nFormats read: {KNOWN}; other column names are mapped with --columns \'{{"old": "new"}}\'.',
        )
