from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from swiftune.generate.kv_store import KVStore, Layers
from swiftune.generate.prefix_cache import PrefixCache

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def layers_of(ids: list[int]) -> Layers:
    """Keys that tell which tokens came before, as real ones do."""
    keys = torch.tensor([[[float(hash(tuple(ids[: n + 1])) % 997)]] for n in range(len(ids))])
    return {0: (keys, -keys)}


@given(st.lists(st.tuples(st.sampled_from(["", "a"]), IDS), max_size=20), st.sampled_from(["", "a"]), IDS)
def test_what_is_found_is_the_longest_and_right(
    kept: list[tuple[str, list[int]]], adapter: str, ids: list[int]
) -> None:
    cache = PrefixCache(10**6)
    for name, each in kept:
        cache.add(name, each, layers_of(each))
    length, layers = cache.find(adapter, np.asarray(ids))
    shares = [
        next((n for n in range(len(ids)) if each[n : n + 1] != ids[n : n + 1]), len(ids))
        for a, each in kept
        if a == adapter
    ]
    assert length == max(shares, default=0)
    for found, right in zip(layers.get(0, ()), layers_of(ids)[0], strict=bool(layers)):
        assert torch.equal(found, right[:length])
    cache.clear("a")
    assert cache.find("a", np.asarray(ids)) == (0, {})
    cache.clear()
    assert cache.nbytes == 0


@given(st.lists(IDS, max_size=30), st.integers(0, 60))
def test_memory_is_bounded(kept: list[list[int]], tokens: int) -> None:
    cache = PrefixCache(8 * tokens)
    for each in kept:
        cache.add("", each, layers_of(each))
        assert cache.nbytes <= 8 * tokens


@given(
    st.lists(st.tuples(st.sampled_from(["open", "grow", "close"]), st.integers(1, 700), st.integers(0, 9)), max_size=40)
)
def test_places_keep_what_is_theirs(steps: list[tuple[str, int, int]]) -> None:
    store, places = KVStore(), []
    for number, (what, tokens, which) in enumerate(steps):
        if what == "open":
            place = store.open(tokens)
            keys = torch.full((tokens, 2, 4), float(number))
            store.put(place, {0: (keys, -keys), 3: (keys[:, :1], keys)})
            places.append((place, number, tokens))
        elif places and what == "grow":
            store.make_room(places[which % len(places)][0], tokens)
        elif places:
            store.close(places.pop(which % len(places))[0])
        assert sorted(place.index for place, *_ in places if place.shelf.capacity == 128) == list(
            range(sum(place.shelf.capacity == 128 for place, *_ in places))
        )
        for place, mark, length in places:
            taken = store.take(place, length)
            assert place.length == length
            assert all(bool((x.abs() == mark).all()) for pair in taken.values() for x in pair)
    for place, *_ in places:
        store.close(place)
    assert store.nbytes <= sum(2 * 128 * 2**n * 16 * 2 * 4 for n in range(4))  # a place a shelf at most
