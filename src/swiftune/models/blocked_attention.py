"""Causal attention on a CPU, as a few matrix products a block: for rows of ordinary length several times as fast as
PyTorch's flash kernel for CPUs, whose inner loops are made for long ones.

Every sequence is cut into blocks of queries; a block sees the keys up to its own end. For a block, with S = s Q Kᵀ and
P = softmax(S) over the keys that a query may see (FlashAttention, arXiv:2205.14135, section 3 and appendix B.4):

    O = P V        dV = Pᵀ dO        dP = dO Vᵀ        dS = P (dP - rowsum(P dP))        dQ = s dS K        dK = s dSᵀ Q

Query heads that share a key head go through the same product: their queries are laid below each other. With 16-bit
inputs the scores are computed and kept in float32, as in the flash kernels; dP and dS are rounded to the 16 bits.

Shapes: T tokens of all sequences, H query heads, K key/value heads, G = H / K, D head size; of one block: N queries,
M keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

QUERIES = 128
"""Queries of a block: fewer waste less on masked scores, more make larger matrix products."""
KEEP = 512
"""Keys up to which a block's P is kept for the backward pass; of longer ones it is computed again."""


def blocked_attention(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    bounds: list[int],
    scale: float,
    shared: int = 0,
) -> torch.Tensor:
    """Causal attention within each sequence.

    Args:
        bounds: where each sequence starts, and T at the end.
        scale: factor of the scores.
        shared: tokens of the first sequence, if they stand before every other one, too.

    Returns:
        The output, ``(T, H, D)``.
    """
    # A layer's tensors lie in memory as (T, H, D): transposed back they are contiguous.
    q, k, v = (x.transpose(0, 1) for x in (query_HTD, key_KTD, value_KTD))
    k, v = (_repeated(x, bounds, shared) for x in (k, v))
    return _Blocked.apply(q, k, v, bounds, scale, shared)  # type: ignore[no-any-return, no-untyped-call]


def _repeated(x_TKD: torch.Tensor, bounds: list[int], shared: int) -> torch.Tensor:
    """With the shared tokens before every sequence, ``(T + (sequences - 1) shared, K, D)``."""
    if not shared:
        return x_TKD
    first, *others = torch.split(x_TKD, [end - start for start, end in pairwise(bounds)])
    return torch.cat([first, *(part for other in others for part in (first, other))])


def _blocks(bounds: list[int], shared: int = 0) -> Iterator[tuple[slice, slice]]:
    """Queries and keys of every block; of a sequence the last block first, which sees all its keys."""
    for number, (start, end) in enumerate(pairwise(bounds)):
        before = shared if number else 0
        ahead = number * shared  # shared tokens that were put before this sequence and those before it
        for first in reversed(range(start, end, QUERIES)):
            last = min(first + QUERIES, end)
            yield slice(first, last), slice(start + ahead - before, last + ahead)


def kept_keys(length: int) -> float:
    """Weights that are kept for the backward pass of a sequence of ``length`` tokens, a token and head."""
    blocks = [(q.stop - q.start) * (k.stop - k.start) for q, k in _blocks([0, length]) if k.stop - k.start <= KEEP]
    return float(sum(blocks)) / length


class _Blocked(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]  # it would round the scores
    def forward(
        ctx: Any,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        bounds: list[int],
        scale: float,
        shared: int,
    ) -> torch.Tensor:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
        scaled_THD, wide_TKD = _scaled(q_THD, scale), _wide(k_TKD)
        kept = []
        for queries, keys in _blocks(bounds, shared):
            p = _weights(scaled_THD[queries], wide_TKD[keys]).to(q_THD.dtype)
            out_THD[queries] = _by_token(torch.bmm(p, v_TKD[keys].transpose(0, 1)), out_THD[queries])
            if ctx.needs_input_grad[0] and keys.stop - keys.start <= KEEP:
                kept.append(p)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, *kept)
        ctx.bounds, ctx.scale, ctx.shared = bounds, scale, shared
        return out_THD

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, *kept = ctx.saved_tensors
        scale, weights = ctx.scale, iter(kept)
        blocks = list(_blocks(ctx.bounds, ctx.shared))
        again = any(keys.stop - keys.start > KEEP for _, keys in blocks)
        scaled_THD, wide_TKD = (_scaled(q_THD, scale), _wide(k_TKD)) if again else (q_THD, k_TKD)
        grad_q_THD, grad_k_TKD, grad_v_TKD = (torch.empty(x.shape, dtype=x.dtype) for x in (q_THD, k_TKD, v_TKD))
        for queries, keys in blocks:
            q, g = (_by_key_head(x[queries], k_TKD) for x in (q_THD, grad_THD))
            k, v = k_TKD[keys].transpose(0, 1), v_TKD[keys].transpose(0, 1)
            if keys.stop - keys.start <= KEEP:
                p = next(weights)
            else:
                p = _weights(scaled_THD[queries], wide_TKD[keys]).to(q_THD.dtype)
            dp = torch.bmm(g, v.transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            grad_q_THD[queries] = _by_token(torch.bmm(ds, k), grad_q_THD[queries])
            for total_TKD, part_KMD in (
                (grad_k_TKD, torch.bmm(ds.transpose(1, 2), q)),
                (grad_v_TKD, torch.bmm(p.transpose(1, 2), g)),
            ):
                # The sequence's last block came first and has written all keys; the others add to a part of them.
                total = total_TKD[keys]
                if queries.stop in ctx.bounds:
                    total.copy_(part_KMD.transpose(0, 1))
                else:
                    total.add_(part_KMD.transpose(0, 1))
        return grad_q_THD.mul_(scale), grad_k_TKD.mul_(scale), grad_v_TKD, None, None, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scaled(q_THD: torch.Tensor, scale: float) -> torch.Tensor:
    return _wide(q_THD) * scale


def _weights(q_NHD: torch.Tensor, k_MKD: torch.Tensor) -> torch.Tensor:
    """P of a block, ``(K, G N, M)``; the last query sees all keys, each one before it a key less."""
    n = len(q_NHD)
    scores = torch.bmm(_by_key_head(q_NHD, k_MKD), k_MKD.permute(1, 2, 0))
    heads, _, keys = scores.shape
    scores.view(heads, -1, n, keys)[..., keys - n :].add_(_future()[:n, :n])
    return torch.softmax(scores, dim=-1)


@functools.cache
def _future() -> torch.Tensor:
    """Minus infinity where a key comes after the query."""
    return torch.full((QUERIES, QUERIES), float("-inf")).triu_(1)


def _by_key_head(x_NHD: torch.Tensor, k_TKD: torch.Tensor) -> torch.Tensor:
    """``(N, H, D)`` to ``(K, G N, D)``."""
    n, heads, size = x_NHD.shape
    shared = k_TKD.shape[1]
    return x_NHD.view(n, shared, heads // shared, size).permute(1, 2, 0, 3).reshape(shared, -1, size)


def _by_token(x: torch.Tensor, like_NHD: torch.Tensor) -> torch.Tensor:
    """``(K, G N, D)`` to ``(N, H, D)``."""
    n, heads, size = like_NHD.shape
    return x.view(x.shape[0], heads // x.shape[0], n, size).permute(2, 0, 1, 3).reshape(n, heads, size)
