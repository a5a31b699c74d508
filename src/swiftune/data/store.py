"""Samples on disk: their files are read once, and memory holds a batch of them, whatever their number.

A part is the normalised rows of one data set in a folder of the cache: ``rows.arrow`` (sample as JSON, file, line),
``faults.jsonl`` (rows that are no samples) and ``about.json``. Its key is made of everything that it depends on, the
contents of the files among them, so a part is never out of date. It is complete or not there.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from swiftune.errors import OutputError
from swiftune.runtime.paths import lock_of, locked, staged
from swiftune.types import Place, Sample, SetAside

_BATCH = 256
"""Rows of a record batch: every one has as many, but the last."""


class Part:
    """The samples of one data set, in the order read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.rows: int = about["rows"]
        self.hashes: dict[str, str] = about["hashes"]
        """SHA-256 of each file."""
        self._files = list(self.hashes)
        self._held: tuple[int, tuple[Any, Any, Any]] = (-1, ((), (), ()))

    def __getitem__(self, index: int) -> Sample:
        samples, files, lines = self._batch(index // _BATCH)
        at = index % _BATCH
        value = json.loads(samples[at].as_py())
        place = Place(self._files[files[at]], int(lines[at]))
        return Sample(**value, place=place)

    def _batch(self, number: int) -> tuple[Any, Any, Any]:
        """The columns of a record batch. The last one is kept: most who read, read in order."""
        held, columns = self._held
        if held != number:
            batch = self._reader.get_batch(number)
            columns = (batch.column(0), batch.column(1).to_numpy(), batch.column(2).to_numpy())
            self._held = number, columns
        return columns

    @functools.cached_property
    def _reader(self) -> Any:
        import pyarrow as pa

        # Not mapped: the pages touched would count as this process's memory, up to the whole file.
        return pa.ipc.open_file(pa.OSFile(str(self.folder / "rows.arrow")))

    def __reduce__(self) -> tuple[type[Part], tuple[Path]]:
        return Part, (self.folder,)

    def faults(self) -> Iterator[SetAside]:
        """The rows that are no samples."""
        with (self.folder / "faults.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                file, number, reason, detail = json.loads(line)
                yield SetAside(Place(file, number), reason, detail)


def part_of(cache: Path, key: str, hashes: dict[str, str], rows: Iterable[Sample | SetAside]) -> Part:
    """The part of that key; ``rows`` are taken only if it was not built before.

    Args:
        hashes: SHA-256 of each file that the rows are from.

    Raises:
        OutputError: the cache cannot be written.
    """
    target = cache / key
    with locked(lock_of(target), "reading the same data"):
        if not target.is_dir():
            try:
                with staged(target) as folder:
                    _write(folder, hashes, rows)
            except OSError as error:
                raise OutputError(
                    f"The cache {cache} cannot be written: {error.strerror or error}.",
                    "Set SWIFTUNE_CACHE to a folder with room.",
                ) from None
    return Part(target)


def _write(folder: Path, hashes: dict[str, str], rows: Iterable[Sample | SetAside]) -> None:
    import pyarrow as pa

    index = {file: number for number, file in enumerate(hashes)}
    schema = pa.schema([("sample", pa.large_binary()), ("file", pa.int32()), ("line", pa.int64())])
    count = 0
    with (
        (folder / "faults.jsonl").open("w", encoding="ascii") as faults,
        pa.OSFile(str(folder / "rows.arrow"), "wb") as out,
        pa.ipc.new_file(out, schema) as writer,
    ):
        for batch in _batches(rows, faults):
            columns = [
                [_dump(sample) for sample in batch],
                [index[sample.place.file] for sample in batch],
                [sample.place.line for sample in batch],
            ]
            writer.write_batch(
                pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
            )
            count += len(batch)
    (folder / "about.json").write_text(json.dumps({"rows": count, "hashes": hashes}), encoding="utf-8")


def _batches(rows: Iterable[Sample | SetAside], faults: Any) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for row in rows:
        if isinstance(row, SetAside):
            faults.write(json.dumps([row.place.file, row.place.line, row.reason, row.detail]) + "\n")
            continue
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _dump(sample: Sample) -> bytes:
    own = {name: getattr(sample, name) for name in ("messages", "tools", "format", "channel", "label")}
    value = {name: content for name, content in own.items() if content is not None}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class SampleStore(Sequence[Sample]):
    """A choice of rows out of parts: ``len``, ``store[i]``, and slices, which are stores again.

    Args:
        parts: the data sets.
        rows_N: which rows of the parts laid end to end, in what order; a row may occur more than once.
    """

    def __init__(self, parts: Sequence[Part], rows_N: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.parts = list(parts)
        self.rows_N = rows_N
        self._ends = np.cumsum([part.rows for part in parts])

    def __len__(self) -> int:
        return len(self.rows_N)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleStore: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleStore:
        if isinstance(index, slice):
            return SampleStore(self.parts, self.rows_N[index])
        row = int(self.rows_N[index])
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[part][row - (int(self._ends[part - 1]) if part else 0)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with any row, and with the order of rows."""
        whole = hashlib.sha256(self.rows_N.tobytes())
        for part in self.parts:
            whole.update(part.folder.name.encode())
        return whole.hexdigest()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file the rows are from."""
        return {file: digest for part in self.parts for file, digest in part.hashes.items()}
