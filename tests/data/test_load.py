from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger
from swiftune.data.load import choose, load_samples, split
from swiftune.data.store import SampleStore
from swiftune.errors import DataError, OutputError, UsageError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered(path: Path, count: int) -> str:
    return write(path, [{"query": f"q{i}", "response": f"a{i}"} for i in range(count)])


def load(*names: str, ledger: Ledger | None = None, **options) -> SampleStore:
    return load_samples(names, Path, ledger=ledger or Ledger(), **options)


def answers(store: SampleStore) -> list[str]:
    return [sample.messages[-1]["content"] for sample in store]


# Choosing and counting.


def test_sets_follow_each_other_in_the_order_given(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 3), write(tmp_path / "b.jsonl", [{"text": "raw"}, {"text": "more"}])
    store = load(b, a)
    assert answers(store) == ["raw", "more", "a0", "a1", "a2"]
    assert [str(sample.place) for sample in store] == [f"{b}:1", f"{b}:2", f"{a}:1", f"{a}:2", f"{a}:3"]
    assert answers(store[1:4]) == ["more", "a0", "a1"]
    assert store[-1] == store[4]
    assert set(store.hashes) == {a, b}
    with pytest.raises(IndexError):
        store[5]


def test_a_number_of_rows_is_a_sample_without_replacement(tmp_path) -> None:
    name = numbered(tmp_path / "a.jsonl", 1000)
    first, again, other = (answers(load(f"{name}#100", seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(set(first)) == 100
    assert set(first) < set(answers(load(f"{name}#200", seed=1))), "a larger number keeps the rows of a smaller one"


def test_a_sample_does_not_depend_on_what_is_named_beside_it(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 100), numbered(tmp_path / "b.jsonl", 50)
    assert answers(load(b, f"{a}#10"))[50:] == answers(load(f"{a}#10"))


@given(there=st.integers(1, 50), wanted=st.integers(1, 200), seed=st.integers(0, 5))
def test_more_rows_than_there_are_is_whole_repeats_then_a_sample(there: int, wanted: int, seed: int) -> None:
    counts = np.bincount(choose(there, wanted, [seed]), minlength=there)
    assert counts.sum() == wanted
    assert set(counts) <= {wanted // there, wanted // there + 1}


@pytest.mark.parametrize(("amount", "rows"), [("50%", 3), ("1%", 1), ("200%", 10), ("100%", 5), ("2", 2), ("12", 12)])
def test_amounts_count_usable_rows(tmp_path, amount: str, rows: int) -> None:
    good = [{"text": f"t{i}"} for i in range(5)]
    name = write(tmp_path / "a.jsonl", [*good[:2], {"text": None}, "{broken", *good[2:]])
    ledger = Ledger()
    store = load(f"{name}#{amount}", ledger=ledger)
    assert len(store) == rows
    assert (ledger.used, ledger.aside, ledger.read) == (rows, 2, rows + 2)


ROW = st.sampled_from(
    [
        {"text": "x"},
        {"text": ""},
        {"text": None},
        {"query": "q", "response": "r"},
        {"frage": 1},
        "{oops",
        "[1]",
        "7",
        {},
    ]
)


@given(rows=st.lists(ROW, min_size=1, max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_read_are_rows_used_and_rows_set_aside(tmp_path, rows: list) -> None:
    name = write(tmp_path / "a.jsonl", [{"text": "first"}, *rows])
    good = [row for row in rows if row in ({"text": "x"}, {"query": "q", "response": "r"})]
    for _ in range(2):  # read, then from the cache
        ledger = Ledger()
        store = load(name, ledger=ledger)
        assert len(store) == ledger.used == len(good) + 1
        assert ledger.read == len(rows) + 1
        ledger.write(tmp_path / "set_aside.jsonl")
        aside = [json.loads(line)["line"] for line in (tmp_path / "set_aside.jsonl").read_text().splitlines()]
        assert sorted(aside + [sample.place.line for sample in store]) == list(range(1, len(rows) + 2))


# The store.


def test_a_second_load_reads_nothing_and_a_changed_file_is_read_again(tmp_path, monkeypatch) -> None:
    name = numbered(tmp_path / "a.jsonl", 5)
    first = load(name)
    reads = []
    from swiftune.data import dataset

    read_rows = dataset.read_rows
    monkeypatch.setattr(dataset, "read_rows", lambda *args: reads.append(args) or read_rows(*args))
    second = load(name)
    assert (reads, answers(second), second.fingerprint) == ([], answers(first), first.fingerprint)
    stamp = Path(name).stat()
    Path(name).write_text(Path(name).read_text().replace("a3", "b3"))
    import os

    os.utime(name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size, the same time, other rows
    third = load(name)
    assert len(reads) == 1
    assert answers(third)[3] == "b3"
    assert third.fingerprint != first.fingerprint
    assert load(name, columns={"query": "text", "response": "x"})[0].messages[0]["content"] == "q0"
    assert len(reads) == 2


def test_the_fingerprint_knows_the_rows_and_their_order(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 9), numbered(tmp_path / "b.jsonl", 8)
    prints = [load(*names).fingerprint for names in ((a,), (b,), (a, b), (b, a), (f"{a}#5",), (f"{a}#6",))]
    assert len(set(prints)) == 6


def test_a_store_can_be_sent_to_another_process(tmp_path) -> None:
    store = load(numbered(tmp_path / "a.jsonl", 700))
    assert store[650].messages[-1]["content"] == "a650"
    assert list(pickle.loads(pickle.dumps(store))) == list(store)


def test_tools_and_marks_come_back_as_they_went_in(tmp_path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"größe": 1.5}}}]
    messages = [{"role": "user", "content": "你好\u2028"}, {"role": "assistant", "content": "é", "loss": False}]
    sample = load(write(tmp_path / "a.jsonl", [{"messages": messages, "tools": tools}]))[0]
    assert (sample.messages, sample.tools) == (messages, tools)


def test_nothing_half_built_is_left(tmp_path) -> None:
    name = tmp_path / "a.json"
    name.write_text('[{"text": "x"},\n{"text": "y"},\noops]')
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.json:3"):
            load(str(name), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        load(numbered(tmp_path / "a.jsonl", 1), cache_dir=tmp_path / "cache")


# What is refused.


def test_no_usable_row_is_told_with_places_reasons_and_cure(tmp_path) -> None:
    name = write(tmp_path / "a.jsonl", [{"frage": "x"}] * 5 + [{"text": ""}])
    other = write(tmp_path / "b.jsonl", [{"frage": "x"}] * 5 + [{"text": "x"}])
    with pytest.raises(DataError) as caught:
        load(other, name)
    assert f"{name}:1: unknown columns: columns: frage" in caught.value.what
    assert f"{name}:6: empty answer" in caught.value.what
    assert "--columns" in caught.value.cure
    assert len(caught.value.what.splitlines()) == 3


@pytest.mark.parametrize("file", ["a.jsonl", "a.json", "a.csv"])
def test_an_empty_file(tmp_path, file: str) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        load(write(tmp_path / file, []))


def test_an_amount_that_is_none(tmp_path) -> None:
    name = numbered(tmp_path / "a.jsonl", 1)
    for amount in ("#0", "#-3", "#abc"):
        with pytest.raises(UsageError):
            load(name + amount)


# Splitting.


@given(
    there=st.integers(1, 30),
    wanted=st.integers(1, 60),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 3),
)
@settings(deadline=None)
def test_split(there: int, wanted: int, ratio: float, seed: int) -> None:
    store = SampleStore([], choose(there, wanted, [0]))
    train, val = split(store, ratio, seed)
    assert sorted([*train.rows_N, *val.rows_N]) == sorted(store.rows_N)
    assert not set(train.rows_N) & set(val.rows_N), "no row is trained on and validated on"
    unique = min(there, wanted)
    if 0 < ratio < 1 and unique >= 2:
        assert len(train)
        assert len(set(val.rows_N)) == min(max(1, int(unique * ratio + 0.5)), unique - 1)
    again = split(store, ratio, seed)
    assert [part.rows_N.tolist() for part in again] == [train.rows_N.tolist(), val.rows_N.tolist()]


def test_split_depends_on_the_seed() -> None:
    store = SampleStore([], np.arange(100))
    assert split(store, 0.1, 1)[1].rows_N.tolist() != split(store, 0.1, 2)[1].rows_N.tolist()


# Sets with ways of their own.


def mirror(folder: Path) -> Path:
    """Stand-ins for what the recipes name, in the columns of the real sets."""
    zh = folder / "AI-ModelScope" / "alpaca-gpt4-data-zh"
    zh.mkdir(parents=True)
    (zh / "train.csv").write_text(
        "instruction,input,output\n保持健康的三个提示。,,多运动。\n翻译,输入：你好,Hello\n", encoding="utf-8"
    )
    (zh / "alpaca-gpt4-data-zh.json").write_text('{"default": {"train": {"meta": "train.csv", "file": ""}}}')
    en = folder / "AI-ModelScope" / "alpaca-gpt4-data-en"
    en.mkdir()
    (en / "train.csv").write_text(
        'instruction,input,output,text\nAdd.,"1, 2",3,"Below is an instruction. Add. 1, 2: 3"\nSay hi.,,Hi!,All\n'
    )
    rows = [
        {"query": "你是谁？", "response": "我是{{NAME}}，由{{AUTHOR}}开发。", "tag": "zh"},
        {"query": "Who are you?", "response": "I am {{NAME}} by {{AUTHOR}}.", "tag": "en"},
    ]
    write(folder / "swift" / "self-cognition" / "self_cognition.jsonl", rows)
    return folder


def test_the_sets_of_the_recipes_are_recognised_without_flags(tmp_path) -> None:
    root = mirror(tmp_path)
    names = ["AI-ModelScope/alpaca-gpt4-data-zh", "AI-ModelScope/alpaca-gpt4-data-en", "swift/self-cognition"]
    who = Identity.of(["小黄", "Yellow"], ["作者"])
    store = load_samples(names, lambda name: root / name, ledger=Ledger(), identity=who)
    assert [[message["content"] for message in sample.messages] for sample in store] == [
        ["保持健康的三个提示。", "多运动。"],
        ["翻译\n你好", "Hello"],
        ["Add.\n1, 2", "3"],
        ["Say hi.", "Hi!"],
        ["你是谁？", "我是小黄，由作者开发。"],
        ["Who are you?", "I am Yellow by 作者."],
    ]


def test_identity_defaults_with_a_notice_and_never_in_other_sets(tmp_path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("swiftune.data.identity.notice", said.append)
    row = {"query": "Who?", "response": "{{NAME}} by {{AUTHOR}}"}
    own, other = write(tmp_path / "self_cognition.jsonl", [row]), write(tmp_path / "other.jsonl", [row])
    assert answers(load(own)) == ["swift-robot by swift"]
    assert answers(load(own, identity=Identity.of(["Bob"], None))) == ["Bob by swift"]
    assert ["--model_name and --model_author" in text for text in said] == [True, False]
    assert answers(load(other, identity=Identity.of(["Bob"], ["Al"]))) == ["{{NAME}} by {{AUTHOR}}"]


# Speed: 40,000 rows/s where this was written; the bound only catches what is quadratic.


def test_a_hundred_thousand_rows(tmp_path) -> None:
    row = json.dumps({"instruction": "i" * 60, "input": "", "output": "o" * 300})
    name = tmp_path / "a.jsonl"
    name.write_text((row + "\n") * 100_000)
    start = time.perf_counter()
    assert len(load(str(name))) == 100_000
    assert 100_000 / (time.perf_counter() - start) > 10_000
