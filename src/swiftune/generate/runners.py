"""What runs the model on new tokens of several requests: all in one pass, or one request at a time.

``Together`` keeps keys and values itself and serves every model that uses Transformers' attention interface, with full
or sliding attention. Models that it cannot serve (``serves`` tries it out) take ``OneByOne``: right, but no faster with
many requests than with one.

Shapes: N requests whose next token is asked for, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from swiftune.generate import kv_attention
from swiftune.generate.kv_store import KVStore, Place
from swiftune.generate.prefix_cache import PrefixCache, shared
from swiftune.generate.row import Row
from swiftune.models.packed_linear import PackedLinears
from swiftune.tuners.lineup import Lineup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORTH = 16
"""Tokens in common from which on a request waits for another one's, or takes them."""


@dataclass(frozen=True)
class Work:
    """The next ``count`` tokens of a request to be computed."""

    row: Row
    count: int

    @property
    def wants(self) -> bool:
        """Whether the request's next token can be chosen then."""
        length: int = self.row.held.length
        return length + self.count == len(self.row.prompt) + len(self.row.ids)


class Runner(Protocol):
    """Computes logits. A row's ``held.length`` is the number of its tokens that have been computed."""

    cuts: bool
    """Whether a prompt may be computed in parts."""

    def serving(self) -> Any:
        """A context in which the model can be run; outside it is as it was."""

    def begin(self, row: Row, others: Sequence[Row]) -> bool:
        """Prepares a row, or returns False where it had better wait: another is computing what it begins with."""

    def end(self, row: Row, *, keep: bool) -> None:
        """Frees what is held for a row. ``keep``: its tokens may be of use to others."""

    def run(self, works: Sequence[Work]) -> torch.Tensor:
        """Logits ``(N, V)`` for the works that want them, in order. Raises whatever the model raises."""

    def forget(self, adapter: str | None = None) -> None:
        """Lets go what is kept of rows that have ended; of one adapter where it is named."""


class Together:
    """One pass over all new tokens, laid in one row.

    Args:
        prefix_bytes: most memory for tokens of rows that have ended.
        pack: compute with copies of the weights that are faster to read (``models.packed_linear``).
    """

    cuts = True

    def __init__(self, model: PreTrainedModel, lineup: Lineup, prefix_bytes: int, *, pack: bool = False) -> None:
        kv_attention.register()
        self._linears = PackedLinears(model) if pack else None
        self._model, self._lineup = model, lineup
        self.store, self.prefixes = KVStore(), PrefixCache(prefix_bytes)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """See Runner."""
        before, training = self._model.config._attn_implementation, self._model.training
        self._model.set_attn_implementation(kv_attention.STORED)
        self._model.eval()
        try:
            with self._linears.used() if self._linears is not None else nullcontext():
                yield
        finally:
            self._model.set_attn_implementation(before)
            self._model.train(training)

    def begin(self, row: Row, others: Sequence[Row]) -> bool:
        """See Runner."""
        ids_T = row.prompt_array
        best, layers = self.prefixes.find(row.adapter, ids_T)
        best = min(best, len(ids_T) - 1)  # the last one is computed in any case, for its logits
        for other in others:
            if other.held is None or other.adapter != row.adapter:
                continue
            same = min(shared(other.prompt_array, ids_T), len(ids_T) - 1)
            if same >= best + WORTH and same > other.held.length:
                return False
            there = min(same, other.held.length)
            if there > best:
                best, layers = there, self.store.take(other.held, there)
        place = self.store.open(len(ids_T) + min(row.limit, 32))
        if best >= WORTH:
            try:
                self.store.put(place, {n: (keys[:best], values[:best]) for n, (keys, values) in layers.items()})
            except Exception:
                self.store.close(place)
                raise
        row.held = place
        return True

    def end(self, row: Row, *, keep: bool) -> None:
        """See Runner."""
        place: Place | None = row.held
        if place is not None:
            if keep and place.length >= WORTH:
                self.prefixes.add(row.adapter, row.all_ids[: place.length], self.store.take(place, place.length))
            self.store.close(place)
            row.held = None

    def forget(self, adapter: str | None = None) -> None:
        """See Runner."""
        self.prefixes.clear(adapter)

    def run(self, works: Sequence[Work]) -> torch.Tensor:
        """See Runner."""
        for work in works:
            self.store.make_room(work.row.held, work.row.held.length + work.count)
        logits: dict[int, torch.Tensor] = {}
        for group in self._lineup.groups([work.row.adapter for work in works]):
            wanted = [n for n in group if works[n].wants]
            logits |= zip(wanted, self._pass([works[n] for n in group]), strict=True)
        for work in works:
            work.row.held.length += work.count
        found = [logits[n] for n in sorted(logits)]
        return torch.stack(found) if found else torch.empty(0)

    def _pass(self, works: Sequence[Work]) -> torch.Tensor:
        spans: list[kv_attention.Span] = []
        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        for work in works:
            place: Place = work.row.held
            spans.append(kv_attention.Span(place, len(ids), work.count))
            ids += new_ids(work)
            positions += range(place.length, place.length + work.count)
            if work.wants:
                keep.append(len(ids) - 1)
        device = self._model.device
        ids_1T, positions_1T = (torch.tensor([values], device=device) for values in (ids, positions))
        with self._lineup.using([(work.row.adapter, work.count) for work in works]):
            logits_1NV: torch.Tensor = self._model(
                input_ids=ids_1T,
                position_ids=positions_1T,
                use_cache=False,
                logits_to_keep=torch.tensor(keep or [0], device=device),
                kv_step=kv_attention.Step(spans, device),
            ).logits
        return logits_1NV[0] if keep else logits_1NV[0, :0]


def new_ids(work: Work) -> list[int]:
    """The tokens of a work."""
    row, at = work.row, work.row.held.length
    past = at - len(row.prompt)
    return row.ids[past : past + work.count] if past >= 0 else row.all_ids[at : at + work.count]


class _Own:
    """Transformers' own cache of one request."""

    def __init__(self, cache: Any) -> None:
        self.cache, self.length = cache, 0


class OneByOne:
    """A pass for every request, with Transformers' own cache, whatever the model keeps in it."""

    cuts = False

    def __init__(self, model: PreTrainedModel, lineup: Lineup) -> None:
        self._model, self._lineup = model, lineup

    @contextmanager
    def serving(self) -> Iterator[None]:
        """See Runner."""
        training = self._model.training
        self._model.eval()
        try:
            yield
        finally:
            self._model.train(training)

    def begin(self, row: Row, others: Sequence[Row]) -> bool:
        """See Runner."""
        from transformers import DynamicCache

        del others
        row.held = _Own(DynamicCache(config=self._model.config))
        return True

    def end(self, row: Row, *, keep: bool) -> None:
        """See Runner."""
        del keep
        row.held = None

    def forget(self, adapter: str | None = None) -> None:
        """See Runner."""

    def run(self, works: Sequence[Work]) -> torch.Tensor:
        """See Runner."""
        return torch.cat([self._pass(work) for work in works])

    def _pass(self, work: Work) -> torch.Tensor:
        held: _Own = work.row.held
        ids_1T = torch.tensor([new_ids(work)], device=self._model.device)
        with self._lineup.using([(work.row.adapter, work.count)]):
            logits_11V: torch.Tensor = self._model(
                input_ids=ids_1T, past_key_values=held.cache, use_cache=True, logits_to_keep=1
            ).logits
        held.length += work.count
        return logits_11V[0]
