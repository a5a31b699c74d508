from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from swiftune.train.feed import EpochFeed, StreamFeed
from swiftune.types import Row


class Numbers:
    """Row n has the one id n."""

    def __init__(self, count: int) -> None:
        self.lengths = np.ones(count, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        ids = np.array([index], np.int32)
        return Row(ids, ids, (1,))


def numbers(feed: EpochFeed | StreamFeed, step: int) -> list[int]:
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


def test_a_stream_goes_forward_and_skips_what_was_done_before() -> None:
    store = Numbers(9)
    feed = StreamFeed(iter([store[i] for i in range(9)]), 2, max_steps=9)
    assert numbers(feed, 2) == [4, 5]
    assert numbers(feed, 3) == [6, 7]
    assert numbers(feed, 4) == [8]
    assert numbers(feed, 5) == []
