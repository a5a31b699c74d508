"""Keys and values of requests that have ended, for those to come that begin with the same tokens.

Shapes: T tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swiftune.generate.kv_store import Layers


@dataclass(frozen=True, eq=False)
class _Entry:
    adapter: str
    ids_T: np.ndarray
    layers: Layers
    nbytes: int


class PrefixCache:
    """The tokens that were asked for last, as many as memory is allowed for.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._entries = limit, OrderedDict[int, _Entry]()
        self.nbytes = 0

    def add(self, adapter: str, ids: Sequence[int], layers: Layers) -> None:
        """Keeps a copy. Entries that it begins with are let go, and the oldest where there is no room."""
        nbytes = sum(tensor.nbytes for pair in layers.values() for tensor in pair)
        ids_T = np.asarray(ids)
        if not nbytes or nbytes > self._limit:
            return
        for key, entry in list(self._entries.items()):
            if entry.adapter != adapter:
                continue
            same = shared(entry.ids_T, ids_T)
            if same == len(ids_T):
                self._entries.move_to_end(key)
                return
            if same == len(entry.ids_T):
                self._drop(key)
        while self.nbytes + nbytes > self._limit:
            self._drop(next(iter(self._entries)))
        copied = {number: (keys.clone(), values.clone()) for number, (keys, values) in layers.items()}
        new = _Entry(adapter, ids_T, copied, nbytes)
        self._entries[id(new)] = new
        self.nbytes += nbytes

    def find(self, adapter: str, ids_T: np.ndarray) -> tuple[int, Layers]:
        """How many tokens ``ids_T`` shares with the entry that it shares most with, and that many of its tokens."""
        best, found = 0, None
        for key, entry in self._entries.items():
            if entry.adapter == adapter and (same := shared(entry.ids_T, ids_T)) > best:
                best, found = same, key
        if found is None:
            return 0, {}
        self._entries.move_to_end(found)
        layers = self._entries[found].layers
        return best, {number: (keys[:best], values[:best]) for number, (keys, values) in layers.items()}

    def clear(self, adapter: str | None = None) -> None:
        """Lets everything go, or what was computed with one adapter."""
        for key, entry in list(self._entries.items()):
            if adapter is None or entry.adapter == adapter:
                self._drop(key)

    def _drop(self, key: int) -> None:
        self.nbytes -= self._entries.pop(key).nbytes


def shared(one_T: np.ndarray, other_T: np.ndarray) -> int:
    """How many first tokens are the same."""
    length = min(len(one_T), len(other_T))
    differ = one_T[:length] != other_T[:length]
    return int(differ.argmax()) if differ.any() else length
