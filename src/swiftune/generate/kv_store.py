"""Keys and values of the tokens that requests have so far, kept so that a step finds them without copying.

A request's tokens lie in a place on a shelf. A shelf holds places of one capacity, and those in use lie side by side
from the first on, so that attention reads them all as one tensor. A request that outgrows its place moves to the next
shelf, of twice the capacity; a shelf without requests is given back. So at most half of what is held is air, but for
the smallest shelf.

Shapes: P places, C capacity of a place in tokens, K key/value heads, D head size; T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

SMALLEST = 128
"""Capacity of the smallest shelf's places: tokens."""

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer."""


@dataclass(eq=False)
class Shelf:
    """Places of one capacity, of which the first ``len(held)`` are in use."""

    capacity: int
    held: list[Place] = field(default_factory=list)
    size: int = 0
    """Places that there is memory for."""
    layers: Layers = field(default_factory=dict)
    """``(P, C, K, D)`` each."""

    def layer(self, number: int, key_TKD: torch.Tensor, value_TKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, made like those given when they are first asked for."""
        if number not in self.layers:
            self.layers[number] = self._room(key_TKD, self.size), self._room(value_TKD, self.size)
        return self.layers[number]

    def resize(self, size: int) -> None:
        """Makes memory for ``size`` places. Where there is none, all stays as it is."""
        used = len(self.held)
        new: Layers = {}
        for number, (keys, values) in self.layers.items():
            new[number] = self._room(keys[0], size), self._room(values[0], size)
            for theirs, ours in zip((keys, values), new[number], strict=True):
                ours[:used] = theirs[:used]
        self.layers, self.size = new, size

    def _room(self, like_TKD: torch.Tensor, size: int) -> torch.Tensor:
        """Zeros: what is behind the mask counts nothing, unless it is no number."""
        return like_TKD.new_zeros(size, self.capacity, *like_TKD.shape[1:])

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that it holds."""
        for keys, values in self.layers.values():
            yield keys
            yield values


@dataclass(eq=False)
class Place:
    """Where the tokens of one request are."""

    shelf: Shelf
    index: int
    length: int = 0
    """Tokens whose keys and values are there."""


class KVStore:
    """All shelves."""

    def __init__(self) -> None:
        self._shelves: dict[int, Shelf] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(tensor.nbytes for shelf in self._shelves.values() for tensor in shelf.tensors())

    def open(self, tokens: int) -> Place:
        """A place for so many tokens."""
        capacity = SMALLEST
        while capacity < tokens:
            capacity *= 2
        shelf = self._shelves.setdefault(capacity, Shelf(capacity))
        if len(shelf.held) == shelf.size:
            shelf.resize(max(1, 2 * shelf.size))
        place = Place(shelf, len(shelf.held))
        shelf.held.append(place)
        return place

    def make_room(self, place: Place, tokens: int) -> None:
        """Moves a place to a larger shelf where it would not hold so many tokens."""
        if tokens <= place.shelf.capacity:
            return
        new = self.open(tokens)
        self.put(new, self.take(place, place.length))
        self.close(place)
        place.shelf, place.index = new.shelf, new.index
        new.shelf.held[new.index] = place

    def close(self, place: Place) -> None:
        """Frees a place; the last one of its shelf moves into the hole."""
        shelf, last = place.shelf, place.shelf.held.pop()
        if last is not place:
            for tensor in shelf.tensors():
                tensor[place.index, : last.length] = tensor[last.index, : last.length]
            last.index = place.index
            shelf.held[last.index] = last
        if not shelf.held and shelf.size > 1:
            del self._shelves[shelf.capacity]

    def take(self, place: Place, length: int) -> Layers:
        """The first tokens of a place, ``(T, K, D)`` a layer: what is there, not a copy."""
        return {
            number: (keys[place.index, :length], values[place.index, :length])
            for number, (keys, values) in place.shelf.layers.items()
        }

    def put(self, place: Place, layers: Layers) -> None:
        """Lays keys and values of first tokens into a place."""
        for number, given in layers.items():
            for ours, theirs in zip(place.shelf.layer(number, *given), given, strict=True):
                ours[place.index, : len(theirs)] = theirs
            place.length = len(given[0])
