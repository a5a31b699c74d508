"""Names of data sets to samples: find, read, recognise, keep on disk, choose rows, mix, split."""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swiftune.data import dataset, files, formats, identity, jsontext, messages, sources, spot, store, unpack
from swiftune.data.dataset import Dataset, Find
from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger
from swiftune.data.store import Part, SampleStore, part_of
from swiftune.errors import DataError
from swiftune.runtime.console import warn
from swiftune.runtime.paths import cache_dir as default_cache


def load_samples(
    names: Sequence[str],
    find: Find,
    *,
    ledger: Ledger,
    columns: Mapping[str, str] | None = None,
    seed: int = 42,
    shuffle: bool = True,
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
        shuffle: ``--dataset_shuffle``; False takes the first N of ``#N``.
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
        named = Dataset.find(text, find, columns, identity, needs_answer)
        part = _part(named, cache_dir or default_cache() / "samples")
        for fault in part.faults():
            ledger.set_aside(fault.place, fault.reason, fault.detail)
        if not part.rows:
            raise named.no_rows(part.faults())
        wanted = named.name.rows_of(part.rows)
        if named.name.count is not None and wanted > part.rows:
            warn(f"{text}: {wanted:,} rows are asked for and {part.rows:,} are there: rows are repeated.")
        rows_N = choose(part.rows, wanted, (seed, zlib.crc32(named.name.id.encode())) if shuffle else None)
        ledger.use(len(rows_N))
        ledger.left_out += max(0, part.rows - len(rows_N))
        parts.append(part)
        chosen.append(start + rows_N)
        start += part.rows
    return SampleStore(parts, np.concatenate(chosen) if chosen else np.empty(0, np.int64))


def choose(there: int, wanted: int, seed: Sequence[int] | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``wanted`` of ``there`` rows: whole repeats, then a sample without replacement, each in the order of the rows.

    Without a seed the sample is the first rows.
    """
    repeats, rest = divmod(wanted, there)
    order = np.arange(there) if seed is None else np.random.default_rng(list(seed)).permutation(there)
    sample = np.sort(order[:rest])
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


def _part(named: Dataset, cache: Path) -> Part:
    hashes = {str(file): _sha256(file) for file in named.files}
    who = named.identity and [named.identity.name, named.identity.author]
    content = [_code(), list(hashes.items()), list(named.columns.items()), who, named.needs_answer]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    return part_of(cache, key, hashes, named.rows())


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
    modules = (dataset, files, formats, identity, jsontext, messages, sources, spot, store, unpack)
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()
