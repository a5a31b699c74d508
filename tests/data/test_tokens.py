from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swiftune.data.ledger import Ledger, RowFault
from swiftune.data.render import Renderer
from swiftune.data.stream import SampleStream, stream_samples
from swiftune.data.token_stream import TokenStream
from swiftune.data.tokens import CUT_AWAY, NOTHING, TOO_LONG, TokenStore, fit, tokenize
from swiftune.errors import DataError, OutputError
from swiftune.types import IGNORE, Place, Row, Sample
from tests.data import chats


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))


class Counting(Renderer):
    """Counts the samples that it renders."""

    rendered = 0

    def rows(self, samples: Sequence[Sample]) -> list[Row | RowFault]:
        self.rendered += len(samples)
        return super().rows(samples)


def samples(count: int = 3) -> list[Sample]:
    """Good ones of growing length, the last without an answer."""
    rows = [
        Sample(
            [
                {"role": "user", "content": f"Question {n}" + " more" * n},
                {"role": "assistant", "content": f"Answer {n}"},
            ],
            Place("rows.jsonl", n + 1),
        )
        for n in range(count - 1)
    ]
    return [*rows, Sample([{"role": "user", "content": "alone"}], Place("rows.jsonl", count))]


def account(rows: Sequence[Sample]) -> Ledger:
    ledger = Ledger()
    ledger.use(len(rows))
    return ledger


def run(rows: Sequence[Sample], renderer: Renderer, ledger: Ledger | None = None, **options: Any) -> TokenStore:
    return tokenize(rows, renderer, ledger=ledger or account(rows), **({"max_length": 2048} | options))


def same(left: Row, right: Row) -> bool:
    return (
        left.ids_T.tolist() == right.ids_T.tolist()
        and left.labels_T.tolist() == right.labels_T.tolist()
        and left.lengths == right.lengths
    )


def test_what_comes_back_is_what_was_rendered() -> None:
    renderer = Renderer(chats.tokenizer("qwen3"))
    rows = samples(1200)  # more than two batches
    rows[5] = Sample(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\na"},
            {"role": "user", "content": "r"},
            {"role": "assistant", "content": "b"},
        ],
        rows[5].place,
    )
    store = run(rows, renderer, max_length=100_000)
    expected = renderer.rows(rows[:-1])
    assert len(store) == len(expected) == len(store.lengths)
    for index in (0, 5, 511, 512, 1198, -1):
        assert same(store[index], expected[index])
    assert store.lengths.tolist() == [len(row.ids_T) for row in expected]
    assert store.supervised == sum(row.supervised for row in expected)
    assert store[5].lengths.__len__() == 2
    store[0].ids_T[0] = 7  # a copy: torch takes writable arrays only
    assert store[0].ids_T[0] != 7
    with pytest.raises(IndexError):
        store[len(store)]
    assert same(pickle.loads(pickle.dumps(store))[3], store[3])


def test_a_second_start_tokenizes_nothing_and_tells_the_same() -> None:
    renderer = Counting(chats.tokenizer("qwen2"))
    rows = samples()
    told = []
    for cached in (False, True):
        ledger = account(rows)
        store = run(rows, renderer, ledger)
        assert store.cached is cached
        assert renderer.rendered == len(rows)
        told.append((ledger.used, ledger.reasons, ledger.examples, [row.ids_T.tolist() for row in store]))
    assert told[0] == told[1]
    assert told[0][0] == 2
    assert told[0][2]["nothing to learn: no assistant message that is supervised"][0].place.line == 3


def test_whatever_decides_the_rows_makes_another_entry() -> None:
    tokenizer = chats.tokenizer("qwen2")
    rows = samples()
    assert not run(rows, Renderer(tokenizer)).cached
    assert not run(rows[::-1], Renderer(tokenizer)).cached
    assert not run(rows, Renderer(tokenizer, system="S")).cached
    assert not run(rows, Renderer(tokenizer), max_length=1024).cached
    assert not run(rows, Renderer(tokenizer), truncation_strategy="left").cached
    moved = [Sample(row.messages, Place("elsewhere.jsonl", 9), row.tools) for row in rows]
    ledger = account(moved)
    assert run(moved, Renderer(tokenizer), ledger).cached
    ((fault,),) = ledger.examples.values()
    assert fault.place.file == "elsewhere.jsonl"


def row(*sequences: tuple[int, int, int]) -> Row:
    """Sequences of (tokens, first supervised, first after)."""
    ids, labels = [], []
    for tokens, start, end in sequences:
        base = 100 * len(labels)
        own = np.arange(base, base + tokens, dtype=np.int32)
        ids.append(own)
        labels.append(np.where((np.arange(tokens) >= start) & (np.arange(tokens) < end), own, IGNORE).astype(np.int32))
    return Row(np.concatenate(ids), np.concatenate(labels), tuple(len(own) for own in ids))


def test_truncation() -> None:
    long = row((10, 6, 9))
    assert fit(long, 10, "delete") is long
    deleted, left, right = (fit(long, 8, strategy) for strategy in ("delete", "left", "right"))
    assert isinstance(deleted, RowFault)
    assert (deleted.reason, deleted.detail) == (TOO_LONG, "10 tokens")
    assert isinstance(left, Row)
    assert left.ids_T.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert left.labels_T.tolist() == [IGNORE] * 4 + [6, 7, 8, IGNORE]
    assert isinstance(right, Row)
    assert right.ids_T.tolist() == list(range(8))
    assert right.supervised == 2
    gone = fit(long, 5, "right")
    assert isinstance(gone, RowFault)
    assert gone.reason == CUT_AWAY
    assert isinstance(fit(row((4, 2, 2)), 8, "left"), RowFault)
    assert str(fit(row((4, 0, 1)), 8, "left")) == NOTHING  # nothing predicts the first token


def test_truncation_of_several_sequences() -> None:
    several = row((10, 8, 10), (4, 2, 4), (12, 1, 3))
    cut = fit(several, 6, "right")
    assert isinstance(cut, Row)
    assert cut.lengths == (4, 6)  # of the first nothing supervised was left
    assert cut.ids_T.tolist() == [100, 101, 102, 103, 200, 201, 202, 203, 204, 205]
    assert cut.supervised == 4


def test_no_row_left_says_what_to_set() -> None:
    renderer = Renderer(chats.tokenizer("qwen2"))
    rows = samples(5)[:-1]
    shortest = int(run(rows, renderer).lengths.min())
    with pytest.raises(DataError, match=f"the shortest has {shortest} tokens.*Set --max_length {shortest} or more"):
        run(rows, renderer, max_length=8)
    assert len(run(rows, renderer, max_length=shortest)) == 1
    with pytest.raises(DataError) as error:
        run(rows, renderer, max_length=8, truncation_strategy="right")
    assert "4 × nothing to learn: max_length cuts every supervised token away (rows.jsonl:1" in str(error.value)
    assert "Raise --max_length" in error.value.cure
    ledger = account(samples()[-1:])
    with pytest.raises(DataError, match="no assistant message"):
        run(samples()[-1:], renderer, ledger)
    assert ledger.aside == 1
    with pytest.raises(DataError, match="there are none"):
        run([], renderer)


def stream_of(rows: Sequence[Sample], folder: Path, ledger: Ledger) -> SampleStream:
    """The samples from a file, in order."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row.messages}) + "\n" for row in rows))
    return stream_samples([str(path)], Path, ledger=ledger, buffer_size=1, needs_answer=False)


def test_stream(tmp_path: Path) -> None:
    renderer = Renderer(chats.tokenizer("qwen2"))
    rows = samples(200)
    store = run(rows, renderer, max_length=400)
    ledger = Ledger()
    stream = TokenStream(stream_of(rows, tmp_path, ledger), renderer, max_length=400)
    got = stream.take(2 * len(store))
    assert all(same(left, right) for left, right in zip(got, [*store, *store], strict=True))
    with pytest.raises(DataError, match="Every row is longer.*the shortest has"):
        TokenStream(stream_of(rows[:3], tmp_path, ledger), renderer, max_length=4).peek()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    class Failing(Renderer):
        def rows(self, samples: Sequence[Sample]) -> list[Row | RowFault]:
            if samples[0].place.line > 1:
                raise KeyboardInterrupt
            return super().rows(samples)

    tokenizer = chats.tokenizer("qwen2")
    with pytest.raises(KeyboardInterrupt):
        run(samples(600), Failing(tokenizer), cache_dir=tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []
    assert not run(samples(600), Renderer(tokenizer), cache_dir=tmp_path / "tokens").cached


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="SWIFTUNE_CACHE"):
        run(samples(), Renderer(chats.tokenizer("qwen2")), cache_dir=tmp_path / "file" / "tokens")


def test_processes_give_the_same_rows(tmp_path: Path) -> None:
    renderer = Renderer(chats.tokenizer("qwen2"))
    rows = samples(700)
    one, two = (run(rows, renderer, cache_dir=tmp_path / str(n), num_proc=n, max_length=900) for n in (1, 2))
    assert (one.folder / "rows.arrow").read_bytes() == (two.folder / "rows.arrow").read_bytes()
    assert (one.folder / "faults.jsonl").read_text() == (two.folder / "faults.jsonl").read_text()
    assert json.loads((two.folder / "about.json").read_text())["supervised"] == two.supervised


def _start(_: int) -> tuple[bool, int]:
    rows = samples(600)
    store = run(rows, Renderer(chats.tokenizer("qwen2")))
    return store.cached, store.supervised


def test_two_starts_at_once_tokenize_once() -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        (first, one), (second, two) = pool.map(_start, range(2))
    assert {first, second} == {False, True}
    assert one == two
