"""Attention over packed rows by their length: ``python -m benchmarks.attention``.

About 2,048 tokens in rows of one length, forward and backward: ours, PyTorch's own row by row, and PyTorch's
own over all of them with a mask of blocks, whose work grows by the square of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from benchmarks.measure import DTYPE, DTYPE_NAME, Report, Run, command, in_turn, machine, peak_flops
from swiftune.models.attention import packed_attention

HEADS = {"SmolLM2-135M": (9, 3, 64), "Qwen2-7B": (28, 4, 128)}
LENGTHS = (16, 64, 128, 256, 512, 1024, 2048)


def inputs(heads: tuple[int, int, int], tokens: int) -> list[torch.Tensor]:
    """Queries, keys and values, laid out as a model's projections leave them: (B, T, H, D) seen as (B, H, T, D)."""
    torch.manual_seed(0)
    query, key, size = heads
    return [torch.randn(1, tokens, count, size).to(DTYPE).transpose(1, 2) for count in (query, key, key)]


def ours(qkv: list[torch.Tensor], length: int) -> torch.Tensor:
    """(B, T, H, D), as all three give it."""
    bounds = list(range(0, qkv[0].shape[2] + 1, length))
    scaling = qkv[0].shape[-1] ** -0.5
    return packed_attention(torch.nn.Module(), *qkv, None, cu_seqlens=bounds, scaling=scaling)[0]  # type: ignore[arg-type]


def by_row(qkv: list[torch.Tensor], length: int) -> torch.Tensor:
    """One call a row."""
    rows = zip(*(x.split(length, dim=2) for x in qkv), strict=True)
    return torch.cat([sdpa(*row, is_causal=True, enable_gqa=True) for row in rows], dim=2).transpose(1, 2)


def masked(qkv: list[torch.Tensor], length: int) -> torch.Tensor:
    """One call, with a mask."""
    row_T = torch.arange(qkv[0].shape[2]) // length
    mask_TT = (row_T[:, None] == row_T[None]).tril()
    return sdpa(*qkv, attn_mask=mask_TT, enable_gqa=True).transpose(1, 2)


def passes(attention: Any, qkv: list[torch.Tensor], length: int) -> Run:
    """Forward and backward."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    seed = torch.randn_like(qkv[0]).transpose(1, 2).contiguous()
    return lambda: torch.autograd.grad(attention(leaves, length), leaves, seed)


def run(
    lengths: Sequence[int] = LENGTHS, models: Sequence[str] = tuple(HEADS), tokens: int = 2048, repeats: int = 3
) -> Report:
    """Times the three at every length."""
    report = Report(
        f"attention over {tokens:,} tokens, forward and backward, milliseconds, {DTYPE_NAME}, {machine()}",
        ("heads of", "row length", "masked", "row by row", "ours", "times masked", "times row by row", "peak share"),
    )
    peak = peak_flops()
    for model in models:
        query, _, size = HEADS[model]
        for length in lengths:
            qkv = inputs(HEADS[model], tokens)
            times = in_turn([passes(kind, qkv, length) for kind in (masked, by_row, ours)], repeats)
            flops = 3 * 2 * 2 * query * size * tokens * length / 2
            millis = [1000 * times.median(i) for i in range(3)]
            report.add(model, length, *millis, times.ratio(0), times.ratio(1), flops / times.median(2) / peak)
    return report


if __name__ == "__main__":
    command(run)
