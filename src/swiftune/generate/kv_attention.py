"""Attention of one step over stored keys and values, registered with Transformers' attention interface.

A step is one pass of the model over new tokens of several requests, laid in one row: one token of each that is being
answered, a stretch of the prompt of each that has just come. The model gets them as a batch of 1 without a mask, which
costs it nothing for neighbours of other lengths; only here are they told apart. So every model that uses the interface
is served without code of its own.

Shapes: T new tokens, H query heads, K key/value heads, G = H / K, D head size; of a shelf: N places, L tokens of the
longest; of a prompt: Q new tokens, L all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from swiftune.generate.kv_store import Place, Shelf

STORED = "swiftune_stored"


@dataclass(frozen=True)
class Span:
    """New tokens of one request: ``count`` of them from ``start`` on in the step's row."""

    place: Place
    start: int
    count: int

    @property
    def length(self) -> int:
        """Tokens of the request once these are there."""
        return self.place.length + self.count


class Step:
    """What the attention of a step has to know; made once and used in every layer."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        shelves: dict[int, list[Span]] = {}
        for span in spans:
            shelves.setdefault(span.place.shelf.capacity, []).append(span)
        self.groups = [_Group(of_shelf, device) for of_shelf in shelves.values()]
        self.tokens = sum(span.count for span in spans)


class _Group:
    """The spans on one shelf."""

    def __init__(self, spans: list[Span], device: torch.device) -> None:
        self.shelf: Shelf = spans[0].place.shelf
        self.device = device
        tokens = [t for span in spans for t in range(span.start, span.start + span.count)]
        slots = [
            span.place.index * self.shelf.capacity + at
            for span in spans
            for at in range(span.place.length, span.length)
        ]
        self.tokens_T, self.slots_T = _index(tokens, device), _index(slots, device)
        """Where the new tokens are in the step's row, and where they go on the shelf."""
        by_place = {span.place.index: span for span in spans}
        self.longest = max(span.length for span in spans)
        # Every place has a query, so that no place has to be copied; those without new tokens get any token's.
        lasts = [(by_place[n].start + by_place[n].count - 1) if n in by_place else 0 for n in range(self.places)]
        self.lasts_N = _index(lasts, device)
        self.present_M = None if len(by_place) == self.places else _index(sorted(by_place), device)
        lengths = [by_place[n].length if n in by_place else 1 for n in range(self.places)]
        self.lengths_N = _index(lengths, device)
        self.even = min(lengths) == self.longest
        self.chunks = [_Chunk(span, device) for span in spans if span.count > 1]
        self.only_chunks = all(span.count > 1 for span in spans)
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor | None] = {}

    @property
    def places(self) -> int:
        return len(self.shelf.held)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """``(N, 1, 1, L)``: what is added to the scores of the last tokens."""
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._mask(window, dtype)
        return self._masks[window, dtype]

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        if self.even and (window is None or window >= self.longest):
            return None
        at_L = torch.arange(self.longest, device=self.device)
        hidden_NL = at_L >= self.lengths_N[:, None]
        if window is not None:
            hidden_NL |= at_L < self.lengths_N[:, None] - window
        return torch.zeros(hidden_NL.shape, dtype=dtype, device=self.device).masked_fill_(hidden_NL, float("-inf"))[
            :, None, None
        ]


@dataclass
class _Chunk:
    """Several new tokens of one request."""

    span: Span
    device: torch.device
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """``(Q, L)``, True where a token may look; ``None`` where it is the plain triangle."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> torch.Tensor | None:
        length, before = self.span.length, self.span.place.length
        if not before and (window is None or window >= length):
            return None
        query_Q1 = torch.arange(before, length, device=self.device)[:, None]
        key_L = torch.arange(length, device=self.device)
        mask_QL = key_L <= query_Q1
        return mask_QL if window is None else mask_QL & (query_Q1 - key_L < window)


def stored_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kv_step: Step,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Stores the new keys and values, and attends with each request's queries to its own.

    Args:
        sliding_window: tokens that a query may look back, itself included.

    Returns:
        The output as Transformers expects it, ``(1, T, H, D)``, and no weights.
    """
    if softcap is not None or s_aux is not None or attention_mask is not None:
        raise NotImplementedError("capped scores, attention sinks and masks of a model's own")
    layer = module.layer_idx
    assert isinstance(layer, int)
    dtype = value_1KTD.dtype  # with float32 weights under autocast, rotated queries and keys are in float32
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1).to(dtype) for x in (query_1HTD, key_1KTD, value_1KTD))
    out_THD = q_THD.new_empty(*q_THD.shape[:2], v_TKD.shape[-1])
    for group in kv_step.groups:
        keys_PCKD, values_PCKD = group.shelf.layer(layer, k_TKD, v_TKD)
        whole = group.tokens_T.shape[0] == kv_step.tokens
        for stored, new_TKD in ((keys_PCKD, k_TKD), (values_PCKD, v_TKD)):
            new = new_TKD if whole else new_TKD[group.tokens_T]
            stored.view(-1, *stored.shape[2:]).index_copy_(0, group.slots_T, new)
        if not group.only_chunks:
            _last_tokens(group, q_THD, keys_PCKD, values_PCKD, out_THD, scaling, sliding_window)
        for chunk in group.chunks:
            _prompt_tokens(chunk, q_THD, keys_PCKD, values_PCKD, out_THD, scaling, sliding_window)
    return out_THD[None], None


def _last_tokens(
    group: _Group,
    q_THD: torch.Tensor,
    keys_PCKD: torch.Tensor,
    values_PCKD: torch.Tensor,
    out_THD: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> None:
    """One query a place: all places of the shelf in one call, the queries of a key head laid below each other."""
    k_NKLD, v_NKLD = (x[: group.places, : group.longest].transpose(1, 2) for x in (keys_PCKD, values_PCKD))
    q_NHD = q_THD[group.lasts_N]
    q_NKGD = q_NHD.view(q_NHD.shape[0], k_NKLD.shape[1], -1, q_NHD.shape[-1])
    out_NKGD = scaled_dot_product_attention(
        q_NKGD, k_NKLD, v_NKLD, attn_mask=group.mask(window, q_NKGD.dtype), scale=scaling
    )
    out_NHD = out_NKGD.reshape(*q_NHD.shape[:2], -1)
    if group.present_M is None:
        out_THD.index_copy_(0, group.lasts_N, out_NHD)
    else:
        out_THD.index_copy_(0, group.lasts_N[group.present_M], out_NHD[group.present_M])


def _prompt_tokens(
    chunk: _Chunk,
    q_THD: torch.Tensor,
    keys_PCKD: torch.Tensor,
    values_PCKD: torch.Tensor,
    out_THD: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> None:
    span = chunk.span
    new = slice(span.start, span.start + span.count)
    k_KLD, v_KLD = (x[span.place.index, : span.length].transpose(0, 1) for x in (keys_PCKD, values_PCKD))
    mask = chunk.mask(window)
    out_1HQD = scaled_dot_product_attention(
        q_THD[new].transpose(0, 1)[None],
        k_KLD[None],
        v_KLD[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    out_THD[new] = out_1HQD[0].transpose(0, 1)


def _index(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def register() -> None:
    """Makes ``attn_implementation="swiftune_stored"`` known to Transformers. May be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(STORED, stored_attention)
