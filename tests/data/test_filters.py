from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from swiftune.data import filters
from swiftune.data.filters import balanced, without_copies
from swiftune.data.ledger import BALANCED, COPY, NEAR_COPY, Ledger
from swiftune.data.load import load_samples
from swiftune.data.store import SampleStore
from swiftune.errors import DataError
from tests.recipes.chats import write_jsonl

LONG = " ".join(f"word{number}" for number in range(40))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(strict=True)  # what a filter leaves out is no fault


def store(path: Path, answers: list[str], ledger: Ledger, amount: str = "", **columns: list[object]) -> SampleStore:
    rows = [
        {"query": "q", "response": answer, **{name: values[i] for name, values in columns.items()}}
        for i, answer in enumerate(answers)
    ]
    return load_samples([f"{write_jsonl(path, rows)}{amount}"], Path, ledger=ledger)


def answers(samples: SampleStore) -> list[str]:
    return [sample.messages[-1]["content"] for sample in samples]


def details(ledger: Ledger, tmp_path: Path) -> dict[str, list[str]]:
    return {
        reason: [f"{Path(e.place.file).name}:{e.place.line} {e.detail.replace(str(tmp_path) + '/', '')}" for e in shown]
        for reason, shown in ledger.examples.items()
    }


def test_copies_are_left_out_and_it_is_said_of_what(tmp_path: Path, ledger: Ledger) -> None:
    train = store(tmp_path / "a.jsonl", ["one", "two", "one", "held", LONG, f"{LONG} more"], ledger)
    val = store(tmp_path / "v.jsonl", ["held", "held"], ledger)
    assert answers(without_copies(train, val, near=False, ledger=ledger)) == ["one", "two", LONG, f"{LONG} more"]
    assert (ledger.read, ledger.used, ledger.reasons) == (8, 6, {COPY: 2})
    assert details(ledger, tmp_path) == {
        COPY: ["a.jsonl:3 of a.jsonl:1", "a.jsonl:4 of v.jsonl:1, which is for evaluation"]
    }
    nearer = Ledger()
    nearer.use(8)
    assert answers(without_copies(train, val, near=True, ledger=nearer)) == ["one", "two", LONG]
    assert nearer.reasons == {COPY: 2, NEAR_COPY: 1}


def test_rows_that_an_amount_repeats_are_no_copies_of_themselves(tmp_path: Path, ledger: Ledger) -> None:
    train = store(tmp_path / "a.jsonl", ["one", "two", "one"], ledger, "#6")
    assert sorted(answers(without_copies(train, train[:0], near=True, ledger=ledger))) == ["one", "one", "two", "two"]
    assert (ledger.read, ledger.used, ledger.reasons) == (6, 4, {COPY: 2})


def test_copies_are_looked_for_once(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    train = store(tmp_path / "a.jsonl", ["one", "one"], ledger)
    first = filters.copies_of(train, train[:0], near=True)
    monkeypatch.setattr(filters, "find_copies", None)
    assert filters.copies_of(train, train[:0], near=True).of_N.tolist() == first.of_N.tolist() == [-1, 0]


def test_only_copies_of_rows_for_evaluation_are_refused(tmp_path: Path, ledger: Ledger) -> None:
    train, val = (store(tmp_path / name, ["one", "two"], ledger) for name in ("a.jsonl", "v.jsonl"))
    with pytest.raises(DataError, match="leaves no row to train on"):
        without_copies(train, val, near=False, ledger=ledger)


def test_classes_get_as_many_rows_each(tmp_path: Path, ledger: Ledger) -> None:
    names = ["chat"] * 7 + ["code"] * 2 + [None]
    train = store(tmp_path / "a.jsonl", [f"a{i}" for i in range(10)], ledger, channel=names)
    drawn = balanced(train, "channel", ledger=ledger, seed=1)
    counts = Counter(sample.channel for sample in drawn)
    assert counts == {None: 4, "chat": 3, "code": 3}, "of ten rows in three classes, one class gets one more"
    assert (np.diff(drawn.rows_N) >= 0).all(), "in the order of the files"
    assert Counter(answers(drawn)).most_common(1) == [("a9", 4)]
    assert ledger.counts == {"read": 14, "used": 10, "set_aside": {BALANCED: 4}, "repeated": 4}
    assert ledger.read == ledger.used + ledger.aside


def test_the_seed_chooses_among_a_class(tmp_path: Path, ledger: Ledger) -> None:
    train = store(tmp_path / "a.jsonl", [f"a{i}" for i in range(40)], ledger, label=[True] * 30 + [False] * 10)

    def drawn(seed: int) -> list[str]:
        own = Ledger()
        own.use(40)
        return answers(balanced(train, "label", ledger=own, seed=seed))

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1)[:20])) == 20


def test_a_column_that_no_row_has_is_refused(tmp_path: Path, ledger: Ledger) -> None:
    train = store(tmp_path / "a.jsonl", ["one"], ledger)
    with pytest.raises(DataError, match="no row has a column 'channel'"):
        balanced(train, "channel", ledger=ledger, seed=1)
