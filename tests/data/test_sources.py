from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.data.jsontext import BrokenJson, JsonText
from swiftune.data.sources import read_rows
from swiftune.errors import DataError
from swiftune.types import Place, RawRow, SetAside

ROWS = [{"query": "Größe?\n", "response": "3 m"}, {"query": "你好", "response": 'say "hi", please'}]


def as_bytes(ending: str) -> bytes:
    if ending == ".json":
        return json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if ending == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["query", "response"])
        writer.writeheader()
        writer.writerows(ROWS)
        return text.getvalue().encode()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: zstandard.ZstdCompressor().compress(data)}


def write(tmp_path, name: str, data: bytes | str):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def values(path) -> list:
    return [row.value for row in read_rows(path) if isinstance(row, RawRow)]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file(tmp_path, ending: str, packing: str) -> None:
    path = write(tmp_path, f"rows{ending}{packing}", PACKERS[packing](as_bytes(ending)))
    rows = list(read_rows(path))
    assert [row.value for row in rows] == ROWS
    lines = {".json": [2, 6], ".jsonl": [1, 2], ".csv": [2, 4], ".parquet": [1, 2]}[ending]
    assert [row.place for row in rows] == [Place(str(path), line) for line in lines]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, ending: str) -> None:
    assert values(write(tmp_path, f"rows{ending}", b"\xef\xbb\xbf" + as_bytes(ending))) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lines.json", '{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("blank-first.json", '\n\n{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("one.json", '{"a": 1}', [{"a": 1}]),
        ("pretty.json", '{\n "a": 1\n}', [{"a": 1}]),
        ("wrapped.json", '{"version": 2, "data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
        ("wrapped-pretty.json", '{\n"rows": [\n{"a": 1},\n{"a": 2}]}', [{"a": 1}, {"a": 2}]),
        ("splits.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}', [{"a": 1}]),
        ("row.json", '{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        ("list.jsonl", '[{"a": 1},\n{"a": 2}]', [{"a": 1}, {"a": 2}]),
        ("list.json", ' [ 1 , "x" , null , [] , 12.5e3 ] ', [1, "x", None, [], 12500.0]),
        ("empty-list.json", "[]", []),
        ("empty.json", "", []),
        ("empty.jsonl", "\n\n", []),
        ("empty.csv", "", []),
        ("header.csv", "a,b\n", []),
        ("blank.csv", "a,b\r\n1,2\r\n\r\n3,4\r\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        ("separator.jsonl", '{"a": "x\u2028y\x85z"}\n{"a": 1}\n', [{"a": "x\u2028y\x85z"}, {"a": 1}]),
    ],
)
def test_shapes_of_json_and_csv(tmp_path, name: str, text: str, expected: list) -> None:
    assert values(write(tmp_path, name, text)) == expected


def test_a_broken_line_is_set_aside_with_its_place(tmp_path) -> None:
    lines = ['{"a": 1}'] * 36 + ['{"a": 1, oops}'] + ['{"a": 2}', "[1", '{"a": "' + "[" * 5]
    path = write(tmp_path, "rows.jsonl", "\n".join(lines))
    rows = list(read_rows(path))
    aside = [row for row in rows if isinstance(row, SetAside)]
    assert [row.place.line for row in aside] == [37, 39, 40]
    assert aside[0].reason == "not valid JSON"
    assert "column 10" in aside[0].detail
    assert "oops" in aside[0].detail
    assert len(rows) == 40


def test_a_row_nested_too_deeply_is_one_row(tmp_path) -> None:
    path = write(tmp_path, "rows.jsonl", '{"a": 1}\n' + "[" * 200_000 + "\n" + '{"a": ' + "9" * 5000 + '}\n{"a": 2}')
    rows = list(read_rows(path))
    assert [type(row) for row in rows] == [RawRow, SetAside, SetAside, RawRow]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_file_in_which_no_line_is_an_object(tmp_path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} holds no JSON object on any line.*{name}:1"):
        values(write(tmp_path, name, "this is\nno JSON\n"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', 3),
        ('[\n{"a": 1},\n{"a": 2\n', 4),
        ('[\n{"a": 1}\n{"a": 2}\n]', 3),
        ('[\n{"a": 1},\n]', 3),
        ('[\n{"a": 1}\n]\n[1]', 4),
        ('[\n{"a": 1},\n{"a": "x\n"}]', 3),
        ('[\n{"a": 1},\n' + "[" * 200_000, 3),
    ],
)
def test_a_list_that_breaks_names_the_line(tmp_path, text: str, line: int) -> None:
    with pytest.raises(DataError, match=rf"rows\.json:{line} breaks the JSON list"):
        values(write(tmp_path, "rows.json", text))


@pytest.mark.parametrize(
    ("name", "data", "line", "at"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a": "caf\xe9"}\n'.encode("latin-1"), 2, 11),
        ("rows.csv", "a,b\n1,2\n3,\xe9t\xe9\n".encode("latin-1"), 3, 3),
        ("rows.json", '[{"a": 1},\n {"a": "caf\xe9"}]'.encode("latin-1"), 2, 12),
        ("rows.json", b"[" + b'{"a": 1},\n' * 300_000 + b'{"a": "caf\xe9"}]', 300_001, 11),
        ("rows.json", b"[" + b'{"a": 1},' * 300_000 + b'{"a": "caf\xe9"}]', 1, 2_700_012),
    ],
)
def test_latin_1_is_told_by_line_and_byte_with_the_cure(tmp_path, name: str, data: bytes, line: int, at: int) -> None:
    with pytest.raises(DataError, match=rf"{name}:{line} is not UTF-8: byte 0xE9, number {at} of") as caught:
        values(write(tmp_path, name, data))
    assert "iconv" in caught.value.cure


def test_utf_16_is_told_with_the_cure(tmp_path) -> None:
    with pytest.raises(DataError, match="rows.jsonl:1 is UTF-16, not UTF-8") as caught:
        values(write(tmp_path, "rows.jsonl", "{}".encode("utf-16")))
    assert "iconv -f UTF-16" in caught.value.cure


def test_csv_rows_of_another_width_are_set_aside(tmp_path) -> None:
    rows = list(read_rows(write(tmp_path, "rows.csv", 'a,b\n1,2\n3\n"x\ny",4\n5,6,7\n')))
    assert [(type(row), row.place.line) for row in rows] == [(RawRow, 2), (SetAside, 3), (RawRow, 4), (SetAside, 6)]


@pytest.mark.parametrize("text", ['a,b\n1,2\n"open,3\n4,5\n', 'a,b\n1,2\n"x"y,3\n'])
def test_csv_with_an_open_quote_swallows_nothing(tmp_path, text: str) -> None:
    with pytest.raises(DataError, match="the row that starts on line 3 is not CSV"):
        values(write(tmp_path, "rows.csv", text))


def test_csv_with_a_column_twice(tmp_path) -> None:
    with pytest.raises(DataError, match="names a column twice"):
        values(write(tmp_path, "rows.csv", "a,a\n1,2\n"))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_packed_file_that_is_cut_short(tmp_path, packing: str) -> None:
    data = PACKERS[packing](as_bytes(".jsonl") * 5000)
    with pytest.raises(DataError, match="is no whole"):
        values(write(tmp_path, f"rows.jsonl{packing}", data[: len(data) // 2]))
    with pytest.raises(DataError, match="is no whole"):
        values(write(tmp_path, f"other.jsonl{packing}", b"not packed at all"))


def test_zstd_frames_follow_each_other(tmp_path) -> None:
    path = write(tmp_path, "rows.jsonl.zst", PACKERS[".zst"](as_bytes(".jsonl")) * 3)
    assert values(path) == ROWS * 3


def test_a_broken_parquet_file(tmp_path) -> None:
    with pytest.raises(DataError, match="no readable parquet file"):
        values(write(tmp_path, "rows.parquet", as_bytes(".parquet")[:-20]))


def test_a_file_that_is_gone(tmp_path) -> None:
    with pytest.raises(DataError, match="No such file"):
        values(tmp_path / "gone.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(10**20), 10**20) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


class Dribble(io.BytesIO):
    """Gives a few bytes at a time, so that every element is cut somewhere."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(7)


@given(st.lists(JSON, max_size=6), st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_list_in_pieces_is_the_list(elements: list, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
    reader = JsonText(Dribble(text.encode("utf-8")), lambda *at: AssertionError(at))
    assert [value for _, value in reader.elements()] == elements


@given(st.text(alphabet='[]{},:"\\u0123456789truefalsn \n', max_size=40))
@settings(max_examples=200, deadline=None)
def test_what_is_no_list_is_broken_just_where_json_says_so(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    reader = JsonText(Dribble(text.encode()), lambda *at: AssertionError(at))
    if isinstance(expected, list):
        assert [value for _, value in reader.elements()] == expected
    else:
        with pytest.raises(BrokenJson):
            list(reader.elements())


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending: str) -> None:
    """Twenty megabytes of rows are read within a few."""
    row = {"query": "q" * 1000, "response": "r" * 1000}
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist([row] * 10_000), path, row_group_size=500)
    elif ending == ".csv":
        path.write_text("query,response\n" + f"{row['query']},{row['response']}\n" * 10_000)
    else:
        line = json.dumps(row)
        path.write_text(f"[{(line + ',') * 9_999}{line}]" if ending == ".json" else (line + "\n") * 10_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == 10_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6
