"""Names of data sets to samples: find, read, recognise, keep on disk, choose rows, mix, split."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swiftune.data import files, formats, identity, jsontext, messages, sources, store
from swiftune.data.files import find_files
from swiftune.data.formats import to_sample
from swiftune.data.identity import Identity, is_self_cognition
from swiftune.data.ledger import Ledger, RowFault
from swiftune.data.names import DatasetName
from swiftune.data.sources import read_rows
from swiftune.data.store import Part, SampleStore, part_of
from swiftune.errors import DataError
from swiftune.runtime.console import warn
from swiftune.runtime.paths import cache_dir as default_cache
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

    def rows(self) -> Iterator[Sample | SetAside]:
        """Every row read, as a sample or as what is wrong with it."""
        for file in self.files:
            for raw in read_rows(file):
                if isinstance(raw, SetAside):
                    yield raw
                    continue
                if self.identity:
                    raw = RawRow(raw.place, self.identity.fill(raw.value))
                try:
                    yield to_sample(raw, self.columns, needs_answer=self.needs_answer)
                except RowFault as fault:
                    yield SetAside(raw.place, fault.reason, fault.detail)

    def no_rows(self, faults: Iterable[SetAside]) -> DataError:
        """What to raise where no row of the data set can be used."""
        seen = list(itertools.islice(faults, _SHOWN))
        if not seen:
            where = ", ".join(str(file) for file in self.files[:_SHOWN]) + (", …" if len(self.files) > _SHOWN else "")
            return DataError(f"The data set {self.name.id} holds no rows: {where}.", "Check that the file is whole.")
        shown = "".join(f"\n  {entry.place}: {entry.reason}: {entry.detail}" for entry in seen)
        return DataError(
            f"No row of the data set {self.name.id} can be used:{shown}",
            f'\nFormats read: {formats.KNOWN}; other column names are mapped with --columns \'{{"old": "new"}}\'.',
        )


def load_samples(
    names: Sequence[str],
    find: Find,
    *,
    ledger: Ledger,
    columns: Mapping[str, str] | None = None,
    seed: int = 42,
    identity: Identity | None = None,
    cache_dir: Path | None = None,
    needs_answer: bool = True,
) -> SampleStore:
    """The samples of all the named data sets, one set after the other, in the order of their files.

    ``#N`` and ``#P%`` count usable rows and choose among them by ``seed`` and the set's name, whatever is named
    beside it. Rows are read and recognised once per content: a second call maps what the first one left in the cache.

    Args:
        names: as on the command line, ``id_or_path[:subset][#N | #P%]``.
        find: leads from id or path to a file or folder.
        ledger: is told of every row.
        columns: ``--columns``.
        seed: ``--data_seed``.
        identity: fills self-cognition sets.
        cache_dir: where the parts are kept; ``runtime.paths.cache_dir()/samples`` by default.
        needs_answer: False takes prompts without an answer, too.

    Raises:
        UsageError: a name that cannot be parsed.
        DataError: data that cannot be read, or a set of which no row can be used.
    """
    parts: list[Part] = []
    chosen: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    start = 0
    for text in names:
        dataset = Dataset.find(text, find, columns, identity, needs_answer)
        part = _part(dataset, cache_dir or default_cache() / "samples")
        for fault in part.faults():
            ledger.set_aside(fault.place, fault.reason, fault.detail)
        if not part.rows:
            raise dataset.no_rows(part.faults())
        wanted = dataset.name.rows_of(part.rows)
        if dataset.name.count is not None and wanted > part.rows:
            warn(f"{text}: {wanted:,} rows are asked for and {part.rows:,} are there: rows are repeated.")
        rows_N = choose(part.rows, wanted, (seed, zlib.crc32(dataset.name.id.encode())))
        ledger.use(len(rows_N))
        parts.append(part)
        chosen.append(start + rows_N)
        start += part.rows
    return SampleStore(parts, np.concatenate(chosen) if chosen else np.empty(0, np.int64))


def choose(there: int, wanted: int, seed: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``wanted`` of ``there`` rows: whole repeats, then a sample without replacement, each in the order of the rows."""
    repeats, rest = divmod(wanted, there)
    sample = np.sort(np.random.default_rng(list(seed)).permutation(there)[:rest])
    return np.concatenate([np.tile(np.arange(there), repeats), sample]).astype(np.int64)


def split(store: SampleStore, ratio: float, seed: int) -> tuple[SampleStore, SampleStore]:
    """Training and validation rows, each in the order of the store.

    ``ratio`` of the rows, rounded half up, go to validation: at least one, and at least one stays, where there are two.
    Of a row that occurs more than once, all occurrences go to the same side.
    """
    unique = np.unique(store.rows_N)
    if ratio <= 0 or len(store) < 2 or (len(unique) < 2 and ratio < 1):
        return store, store[:0]
    if ratio >= 1:
        return store[:0], store
    count = min(max(1, int(len(unique) * ratio + 0.5)), len(unique) - 1)
    held_out = np.random.default_rng(seed).permutation(unique)[:count]
    mask_N = np.isin(store.rows_N, held_out)
    return SampleStore(store.parts, store.rows_N[~mask_N]), SampleStore(store.parts, store.rows_N[mask_N])


def _part(dataset: Dataset, cache: Path) -> Part:
    hashes = {str(file): _sha256(file) for file in dataset.files}
    who = dataset.identity and [dataset.identity.name, dataset.identity.author]
    content = [_code(), list(hashes.items()), sorted(dataset.columns.items()), who, dataset.needs_answer]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    return part_of(cache, key, hashes, dataset.rows())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """A part is as old as the code that recognised its rows."""
    modules = (files, formats, identity, jsontext, messages, sources, store)
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()
