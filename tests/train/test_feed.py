from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftune.data.ledger import Ledger
from swiftune.data.render import Renderer
from swiftune.data.stream import stream_samples
from swiftune.data.token_stream import TokenStream
from swiftune.errors import CheckpointError
from swiftune.train.feed import EpochFeed, StreamFeed
from swiftune.types import Row
from tests.data import chats
from tests.recipes.chats import write_jsonl


class Numbers:
    """Row n has the one id n."""

    def __init__(self, count: int) -> None:
        self.lengths = np.ones(count, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        ids = np.array([index], np.int32)
        return Row(ids, ids, (1,))


def numbers(feed: EpochFeed, step: int) -> list[int]:
    return [int(row.ids_T[0]) for row in feed.take(step)]


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 3), st.booleans(), st.integers(0, 5))
def test_an_epoch_is_every_row_once(count: int, per_step: int, epochs: int, shuffle: bool, seed: int) -> None:
    feed = EpochFeed(Numbers(count), per_step, epochs=epochs, shuffle=shuffle, seed=seed)
    assert feed.steps == epochs * -(-count // per_step)
    for epoch in range(epochs):
        first = epoch * feed.steps_per_epoch
        seen = [n for step in range(first, first + feed.steps_per_epoch) for n in numbers(feed, step)]
        assert sorted(seen) == list(range(count))
        assert shuffle or seen == list(range(count))
        assert feed.epoch(first + feed.steps_per_epoch) == epoch + 1


def test_epochs_differ_seeds_differ_and_any_step_can_be_taken_alone() -> None:
    store = Numbers(30)
    feed = EpochFeed(store, 10, epochs=2, shuffle=True, seed=1)
    orders = [[n for s in range(e * 3, e * 3 + 3) for n in numbers(feed, s)] for e in (0, 1)]
    other = EpochFeed(store, 10, epochs=2, shuffle=True, seed=2)
    assert orders[0] != orders[1]
    assert orders[0] != [n for s in range(3) for n in numbers(other, s)]
    again = EpochFeed(store, 10, epochs=2, shuffle=True, seed=1)
    assert numbers(again, 4) == orders[1][10:20]


def test_max_steps_wins_and_a_fraction_of_an_epoch_is_rounded_up() -> None:
    assert EpochFeed(Numbers(10), 2, epochs=3, max_steps=4, shuffle=False, seed=0).steps == 4
    assert EpochFeed(Numbers(10), 4, epochs=0.5, shuffle=False, seed=0).steps == 2


def texts(folder: Path, count: int) -> str:
    """Raw text, every sixth row too long for 40 tokens."""
    rows = [{"text": f"row {number} {'word ' * (60 if number % 6 == 2 else number % 5)}"} for number in range(count)]
    return str(write_jsonl(folder / f"{count}.jsonl", rows))


def streamed(names: list[str], per_step: int, **options: Any) -> tuple[StreamFeed, Ledger]:
    ledger = Ledger()
    samples = stream_samples(names, Path, ledger=ledger, **options)
    rows = TokenStream(samples, Renderer(chats.tokenizer("qwen2"), raw=True), max_length=40)
    return StreamFeed(rows, per_step, max_steps=100), ledger


def step_of(feed: StreamFeed, step: int) -> list[list[int]]:
    return [row.ids_T.tolist() for row in feed.take(step)]


@given(
    cuts=st.lists(st.integers(0, 14), max_size=4),
    per_step=st.sampled_from([1, 3, 40]),
    size=st.sampled_from([1, 10, 500]),
    odds=st.sampled_from([None, [0.6, 0.4]]),
    abandoned=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_goes_on_from_any_step_as_if_it_had_not_ended(
    tmp_path: Path, cuts: list[int], per_step: int, size: int, odds: list[float] | None, abandoned: bool
) -> None:
    """The step under way may have taken its rows, and be done again."""
    names = [texts(tmp_path, 90), texts(tmp_path, 70)]
    options: dict[str, Any] = {"buffer_size": size, "interleave_prob": odds}
    feed, account = streamed(names, per_step, **options)
    expected = [step_of(feed, step) for step in range(16)]
    assert all(len(rows) == per_step for rows in expected)
    again, ledger = streamed(names, per_step, **options)
    step = 0
    for cut in [*sorted(cuts), 16]:
        for number in range(step, cut):
            assert step_of(again, number) == expected[number]
        step = cut
        if step == 16:
            break
        if abandoned:
            again.take(step)
        state = json.loads(json.dumps(again.state(step)))
        again, ledger = streamed(names, per_step, **options)
        again.go_to(state)
    assert ledger.state() == account.state()


def test_a_checkpoint_without_a_place_in_a_stream_is_refused(tmp_path: Path) -> None:
    feed, _ = streamed([texts(tmp_path, 9)], 2)
    with pytest.raises(CheckpointError, match="tells no place in a stream"):
        feed.go_to({})
