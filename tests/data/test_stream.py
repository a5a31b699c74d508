from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.data.ledger import Ledger
from swiftune.data.stream import SampleStream, stream_samples
from swiftune.data.unpack import open_bytes
from swiftune.errors import CheckpointError, DataError
from tests.data.test_load import numbered, write
from tests.data.test_sources import PACKERS


def stream(*names: str, ledger: Ledger | None = None, **options) -> SampleStream:
    return stream_samples(names, Path, ledger=ledger or Ledger(), **options)


def take(samples: SampleStream, count: int) -> list[str]:
    return [sample.messages[-1]["content"] for sample in itertools.islice(samples, count)]


def test_without_a_buffer_the_order_is_that_of_the_files_again_and_again(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 3), write(tmp_path / "b.jsonl", [{"text": "raw"}])
    assert take(stream(a, b, buffer_size=1), 9) == ["a0", "a1", "a2", "raw", "a0", "a1", "a2", "raw", "a0"]


def test_every_epoch_has_every_row_once_in_its_own_order(tmp_path) -> None:
    name = numbered(tmp_path / "a.jsonl", 100)
    rows = take(stream(name, buffer_size=20), 200)
    assert sorted(rows[:100]) == sorted(rows[100:]) == sorted(f"a{i}" for i in range(100))
    assert rows[:100] != rows[100:]
    assert rows == take(stream(name, buffer_size=20), 200)
    assert rows != take(stream(name, buffer_size=20, seed=7), 200)


# Going on from a state.


def packed(name: str, data: bytes) -> bytes:
    return PACKERS[Path(name).suffix if Path(name).suffix in PACKERS else ""](data)


def file_of(path: Path, count: int) -> str:
    """``count`` rows in the format of the ending, every fifth without an answer; in lines, some are no JSON, too."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    rows = [
        {"query": f'„{name}“ {i},\n"?"' * (i % 4 + 1), "response": "" if i % 5 == 3 else f"a{i}"} for i in range(count)
    ]
    text = io.StringIO(newline="")
    if name.endswith(".parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=9)
        path.write_bytes(packed(path.name, sink.getvalue()))
        return str(path)
    if name.endswith(".csv"):
        writer = csv.DictWriter(text, ["query", "response"])
        writer.writeheader()
        writer.writerows(rows)
    elif name == "object.json":
        json.dump({"data": rows}, text)
    elif name.endswith(".json"):
        json.dump(rows, text, ensure_ascii=False, indent=1)
    else:
        text.write(
            "".join(
                f"{json.dumps(row, ensure_ascii=False)}\n{'{cut' if i % 6 == 5 else ''}\n" for i, row in enumerate(rows)
            )
        )
    path.write_bytes(packed(path.name, (b"\xef\xbb\xbf" if count % 2 else b"") + text.getvalue().encode()))
    return str(path)


ZOO = (
    *("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "list.json", "list.json.gz", "object.json", "d.csv", "e.csv.zst"),
    *("f.parquet", "g.parquet.gz"),
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> list[str]:
    """A file of every kind, and a folder of files."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "several").mkdir()
    for number, name in enumerate(("1.jsonl", "2.csv", "3.json", "4.parquet")):
        file_of(folder / "several" / name, 4 + number)
    return [*(file_of(folder / name, 20 + number) for number, name in enumerate(ZOO)), str(folder / "several")]


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_going_on_from_a_state_gives_what_would_have_come(zoo, data) -> None:
    amounts = st.sampled_from(["", "", "#7", "#40%", "#250%"])
    sets = data.draw(st.lists(st.tuples(st.sampled_from(zoo), amounts), min_size=1, max_size=3))
    odds = {1: [1.0], 2: [0.7, 0.3], 3: [0.5, 0.3, 0.2]}[len(sets)]
    options = {
        "buffer_size": data.draw(st.sampled_from([1, 7, 500])),
        "interleave_prob": data.draw(st.sampled_from([None, odds])),
        "stopping_strategy": data.draw(st.sampled_from(["first_exhausted", "all_exhausted"])),
    }
    counts = data.draw(st.lists(st.integers(0, 60), min_size=2, max_size=4))

    def begin() -> tuple[SampleStream, Ledger]:
        ledger = Ledger()
        return stream(*(name + amount for name, amount in sets), ledger=ledger, **options), ledger

    whole, account = begin()
    expected = list(itertools.islice(whole, sum(counts)))
    samples, ledger = begin()
    got = list(itertools.islice(samples, counts[0]))
    for count in counts[1:]:
        place, said = through_json(samples.state()), through_json(ledger.state())
        samples, ledger = begin()
        list(itertools.islice(samples, 3))  # what is read before makes no difference
        samples.go_to(place)
        ledger.go_to(said)
        got += itertools.islice(samples, count)
    assert got == expected
    assert ledger.state() == account.state()
    assert samples.state() == whole.state()


@pytest.mark.parametrize(
    "name", ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "list.json", "list.json.gz", "d.csv", "e.csv.zst"]
)
def test_rows_before_the_place_are_not_parsed_again(tmp_path, name: str) -> None:
    file = file_of(tmp_path / name, 60)
    samples = stream(file, buffer_size=4)
    take(samples, 30)
    state = samples.state()
    expected = take(samples, 16)  # to the end of the epoch
    with open_bytes(tmp_path / name) as whole:
        content = whole.read()
    first, place = content.index(b"\n") + 1, state["sets"][0]["spot"]["byte"]
    (tmp_path / name).write_bytes(packed(name, content[:first] + b"x" * (place - first) + content[place:]))
    changed = stream(file, buffer_size=4)
    state["files"] = changed.state()["files"]
    changed.go_to(state)
    assert take(changed, 16) == expected


def test_row_groups_before_the_place_are_not_read_again(tmp_path) -> None:
    file = file_of(tmp_path / "a.parquet", 60)
    samples = stream(file, buffer_size=1)
    take(samples, 30)
    state = samples.state()
    expected = take(samples, 10)
    data = bytearray(Path(file).read_bytes())
    column = pq.ParquetFile(file).metadata.row_group(2).column(0)  # rows 19 to 27
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    Path(file).write_bytes(data)
    with pytest.raises(DataError):
        take(stream(file, buffer_size=1), 30)
    changed = stream(file, buffer_size=1)
    changed.go_to(state | {"files": changed.state()["files"]})
    assert take(changed, 10) == expected


@pytest.mark.parametrize("rows", [255, 256, 400, 512, 599])
def test_the_place_within_a_large_row_group(tmp_path, rows: int) -> None:
    table = pa.Table.from_pylist([{"text": str(number)} for number in range(600)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=550)
    samples = stream(str(tmp_path / "a.parquet"), buffer_size=1)
    take(samples, rows - 1)  # one row is read ahead
    again = stream(str(tmp_path / "a.parquet"), buffer_size=1)
    again.go_to(samples.state())
    assert take(again, 602 - rows) == [*map(str, range(rows - 1, 600)), "0"]


def test_files_that_have_changed_are_refused(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 9), numbered(tmp_path / "b.jsonl", 9)
    samples = stream(a, b)
    take(samples, 3)
    with pytest.raises(
        CheckpointError, match="at a place in the files a.jsonl; b.jsonl, and --dataset leads to a.jsonl"
    ):
        stream(a).go_to(samples.state())
    os.utime(b, (0, 0))
    with pytest.raises(CheckpointError, match=f"{b} has changed since .*306 bytes of 20.* then, 306 bytes of 19"):
        stream(a, b).go_to(samples.state())
    numbered(tmp_path / "a.jsonl", 10)
    with pytest.raises(CheckpointError, match=f"{a} has changed since"):
        stream(a, b).go_to(samples.state())


# Amounts and mixing.


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("#4", ["a0", "a1", "a2", "a3"]),
        ("#99", [f"a{i}" for i in range(10)]),
        ("#30%", ["a0", "a3", "a6"]),
        ("#1%", ["a0"]),
        ("#200%", [f"a{i // 2}" for i in range(20)]),
    ],
)
def test_amounts(tmp_path, amount: str, expected: list[str]) -> None:
    name = numbered(tmp_path / "a.jsonl", 10)
    samples = stream(name + amount, buffer_size=1)
    assert take(samples, len(expected)) == expected
    assert take(samples, 1) == ["a0"], "the next epoch"


def test_interleaving(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 400), write(tmp_path / "b.jsonl", [{"text": "b"}] * 200)
    epoch: list[str] = []
    samples = stream(a, b, interleave_prob=[0.8, 0.2], buffer_size=1)
    for sample in samples:
        if samples.epoch:
            break
        epoch.append(sample.messages[-1]["content"][0])
    assert Counter(epoch)["a"] == 400
    assert 60 < Counter(epoch)["b"] < 140


def test_interleaving_to_the_last(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 50), write(tmp_path / "b.jsonl", [{"text": "b"}])
    samples = stream(a, b, interleave_prob=[0.5, 0.5], buffer_size=1, stopping_strategy="all_exhausted")
    rows = Counter(
        sample.messages[-1]["content"] for sample in itertools.takewhile(lambda _: not samples.epoch, samples)
    )
    assert rows.pop("b") > 10
    assert len(rows) == 50
