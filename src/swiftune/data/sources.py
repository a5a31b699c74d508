"""Files to rows, one at a time, each with the place it was read at.

Memory stays bounded: JSON lines and CSV are read by line, JSON lists by element, parquet by batches of rows. Only a
``.json`` file that is one object spread over many lines is held whole. It is also the only one of which rows are parsed
again to go on from a spot; packed files are unpacked up to it.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from swiftune.data.files import format_of
from swiftune.data.jsontext import BrokenJson, JsonText
from swiftune.data.spot import Spot
from swiftune.data.unpack import open_bytes
from swiftune.errors import DataError
from swiftune.types import Place, RawRow, SetAside

NOT_JSON = "not valid JSON"
CSV_WIDTH = "not as many fields as the header has"
_CONVERSATIONS = {"messages", "conversations", "conversation"}
_BOM = b"\xef\xbb\xbf"


def read_rows(path: Path, spot: Spot | None = None) -> Iterator[RawRow | SetAside]:
    """The rows of one file; a row that cannot be parsed comes as ``SetAside``.

    Args:
        spot: where to begin; it is moved along, and always lies behind the row given last.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or holds nothing that parses.
    """
    reader = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}[format_of(path) or ".json"]
    with open_bytes(path) as file:
        yield from reader(str(path), file, spot or Spot())


def _not_utf8(path: str, line: int, at: int, byte: int) -> DataError:
    if (line, at) == (1, 0) and byte in (0xFE, 0xFF):  # the mark that UTF-16 begins with, and no other text
        return DataError(
            f"{path}:1 is UTF-16, not UTF-8.",
            f"Convert the file, for example: iconv -f UTF-16 -t UTF-8 {path} > utf8{Path(path).suffix}",
        )
    return DataError(
        f"{path}:{line} is not UTF-8: byte 0x{byte:02X}, number {at + 1} of the line, fits no character.",
        f"Convert the file, for example: iconv -f LATIN1 -t UTF-8 {path} > utf8{Path(path).suffix}",
    )


def _lines(path: str, file: IO[bytes], spot: Spot) -> Iterator[str]:
    file.seek(spot.byte)
    for raw in file:
        try:
            line = raw.decode("utf-8" if spot.byte else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, spot.line, error.start, error.object[error.start]) from None
        spot.byte, spot.line = spot.byte + len(raw), spot.line + 1
        yield line


# JSON. Hubs use .json for lists and for lines, and .jsonl files that are lists exist: the first character tells.


def _starts_with(mark: bytes, file: IO[bytes]) -> bool:
    file.seek(0)
    return file.peek(4096)[:4096].removeprefix(_BOM).lstrip().startswith(mark)  # type: ignore[attr-defined, no-any-return]


def _json(path: str, file: IO[bytes], spot: Spot) -> Iterator[RawRow | SetAside]:
    """A list; an object that wraps one or is a row itself; or lines."""
    value = _object(path, file) if _starts_with(b"{", file) else None
    if value is None:
        yield from _json_lines(path, file, spot)
        return
    for row in _unwrap(value)[spot.line - 1 :]:
        spot.line += 1
        yield RawRow(Place(path, spot.line - 1), row)


def _object(path: str, file: IO[bytes]) -> dict[str, Any] | None:
    """The one object that the file is; None where it is lines."""
    lines = _lines(path, file, Spot())
    head: list[str] = []  # up to the second line that is not blank
    for line in lines:
        head.append(line)
        if sum(bool(line.strip()) for line in head) == 2:
            if _parsed("".join(head[:-1])) is not None:
                return None
            break
    return _parsed("".join([*head, *lines]))


def _parsed(text: str) -> dict[str, Any] | None:
    """The object, or None where the text is not valid JSON."""
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        return None


def _unwrap(value: dict[str, Any]) -> list[Any]:
    """The rows in ``{"data": [...]}`` or ``{"train": [...], "test": [...]}``; else the object is the one row."""
    lists = {
        key: rows
        for key, rows in value.items()
        if key not in _CONVERSATIONS and isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    }
    for key in ("train", "data", *(lists if len(lists) == 1 and not _CONVERSATIONS & value.keys() else ())):
        if key in lists:
            return lists[key]
    return [value]


def _json_lines(path: str, file: IO[bytes], spot: Spot) -> Iterator[RawRow | SetAside]:
    yield from (_json_list if _starts_with(b"[", file) else _objects)(path, file, spot)


def _objects(path: str, file: IO[bytes], spot: Spot) -> Iterator[RawRow | SetAside]:
    """JSON lines. Lines at fault are handed on, but a file in which no line is an object is no data."""
    for line in _lines(path, file, spot):
        if not line.strip():
            continue
        place = Place(path, spot.line - 1)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = SetAside(place, NOT_JSON, f"{_why(error)}: {shorten(line)}")
            spot.fault = spot.fault or f"{place}: {fault.detail}"
            yield fault
            continue
        spot.parsed |= isinstance(value, dict)
        yield RawRow(place, value)
    if spot.fault and not spot.parsed:
        raise DataError(
            f"{path} holds no JSON object on any line; {spot.fault}",
            'A row is one object on one line, like {"query": "…", "response": "…"}; or the file is one JSON list.',
        )


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _json_list(path: str, file: IO[bytes], spot: Spot) -> Iterator[RawRow]:
    if not spot.byte and file.peek(len(_BOM)).startswith(_BOM):  # type: ignore[attr-defined]
        spot.byte = len(_BOM)
    file.seek(spot.byte)
    text = JsonText(file, lambda line, at, byte: _not_utf8(path, line, at, byte), spot)
    try:
        for line, value in text.elements():
            yield RawRow(Place(path, line), value)
    except BrokenJson as error:
        raise DataError(
            f"{path}:{error.line} breaks the JSON list: {error}.",
            "Mend that line, or write the rows as JSON lines (.jsonl), where a bad one is set aside by itself.",
        ) from None


def shorten(value: Any, limit: int = 60) -> str:
    """A value for a message: on one line, and not long."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text[: 4 * limit].split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


# CSV and parquet.


def _csv(path: str, file: IO[bytes], spot: Spot) -> Iterator[RawRow | SetAside]:
    csv.field_size_limit(sys.maxsize)
    head = Spot()
    start = 1
    try:
        header = next(csv.reader(_lines(path, file, head), strict=True), [])
        other = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
        if other:
            mark = "a tab" if other == "\t" else repr(other)
            raise DataError(f"{path}:1 parts its columns by {mark}.", "Write the file again with commas.")
        if len(set(header)) != len(header):
            raise DataError(f"{path}:1 names a column twice: {', '.join(header)}.", "Give each column its own name.")
        if not spot.byte:
            spot.byte, spot.line = head.byte, head.line
        start = spot.line
        for fields in csv.reader(_lines(path, file, spot), strict=True):
            place = Place(path, start)
            if len(fields) == len(header):
                yield RawRow(place, dict(zip(header, fields, strict=True)))
            elif fields:
                yield SetAside(place, CSV_WIDTH, f"{len(fields)} fields, the header has {len(header)}")
            start = spot.line
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that starts on line {start} is not CSV: {error}.",
            "A field with a comma, quote or line break is put in double quotes, quotes within it are doubled.",
        ) from None


def _parquet(path: str, file: IO[bytes], spot: Spot) -> Iterator[RawRow]:
    """Row groups before the spot are not read, and rows before it are not converted."""
    import pyarrow as pa
    from pyarrow import parquet

    with tempfile.TemporaryFile() as whole:
        if not path.lower().endswith(".parquet"):  # packed: parquet is read from its end
            shutil.copyfileobj(file, whole)
            whole.seek(0)
            file = whole
        try:
            reader = parquet.ParquetFile(file)
            group, passed = 0, spot.line - 1
            while passed and passed >= (rows := reader.metadata.row_group(group).num_rows):
                group, passed = group + 1, passed - rows
            for batch in reader.iter_batches(256, row_groups=range(group, reader.num_row_groups)):
                for value in batch.slice(min(passed, batch.num_rows)).to_pylist():
                    spot.line += 1
                    yield RawRow(Place(path, spot.line - 1), value)
                passed = max(0, passed - batch.num_rows)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            where = f"after row {spot.line - 1}" if spot.line > 1 else "from its start"
            raise DataError(
                f"{path} is no readable parquet file {where}: {shorten(str(error), 120)}.", "Fetch it again."
            ) from None
