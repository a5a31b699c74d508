"""Attention in blocks against PyTorch's attention, one sequence at a time."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from swiftune.models import blocked_attention as module
from swiftune.models.blocked_attention import KEEP, QUERIES, blocked_attention

SCALE = 0.3


def reference(q_HTD: torch.Tensor, k_KTD: torch.Tensor, v_KTD: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    groups = len(q_HTD) // len(k_KTD)
    k, v = (x.repeat_interleave(groups, dim=0) for x in (k_KTD, v_KTD))
    outputs = [
        scaled_dot_product_attention(q_HTD[None, :, a:b], k[None, :, a:b], v[None, :, a:b], is_causal=True, scale=SCALE)
        for a, b in pairwise(bounds)
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


def inputs(tokens: int, heads: int, shared: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values as a layer has them: tokens first in memory; and a gradient of the output."""
    torch.manual_seed(tokens)
    q, k, v, g = (torch.randn(tokens, n, 8).to(dtype) for n in (heads, shared, shared, heads))
    return [*(x.transpose(0, 1).detach().requires_grad_() for x in (q, k, v)), g]


LENGTHS = [
    [1],
    [5, 1, 9],
    [QUERIES, 3, QUERIES - 1],
    [QUERIES + 1, 2],
    [2 * QUERIES],
    [7, KEEP + 1, 7],
    [3 * QUERIES + 17, KEEP + QUERIES],
]


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_output_and_gradients_equal_pytorchs(lengths: list[int], heads: int, shared: int) -> None:
    bounds = [0, *accumulate(lengths)]
    q, k, v, g = inputs(bounds[-1], heads, shared, torch.float64)
    got, expected = blocked_attention(q, k, v, bounds, SCALE), reference(q, k, v, bounds)
    torch.testing.assert_close(got, expected)
    for one, other in zip(*(torch.autograd.grad(out, (q, k, v), g) for out in (got, expected)), strict=True):
        torch.testing.assert_close(one, other)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_small_blocks_give_the_same(lengths: list[int]) -> None:
    bounds = [0, *accumulate(lengths)]
    q, k, v, g = inputs(bounds[-1], 2, 1, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERIES", 8)
        patch.setattr(module, "KEEP", 20)
        got = blocked_attention(q, k, v, bounds, SCALE)
        grads = torch.autograd.grad(got, (q, k, v), g)
    expected = reference(q, k, v, bounds)
    torch.testing.assert_close(got, expected)
    for one, other in zip(grads, torch.autograd.grad(expected, (q, k, v), g), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lengths", LENGTHS[1:], ids=str)
def test_in_bfloat16_it_is_about_as_exact_as_pytorchs(lengths: list[int]) -> None:
    bounds = [0, *accumulate(lengths)]
    q, k, v, g = inputs(bounds[-1], 6, 2, torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    truth = torch.autograd.grad(reference(*exact, bounds), exact, g.double())
    ours = torch.autograd.grad(blocked_attention(q, k, v, bounds, SCALE), (q, k, v), g)
    theirs = torch.autograd.grad(reference(q, k, v, bounds), (q, k, v), g)
    for name, one, other, right in zip("qkv", ours, theirs, truth, strict=True):
        error, allowed = ((x.double() - right).norm() / right.norm() for x in (one, other))
        assert error < 1.5 * allowed, name


def test_the_precision_of_other_products_is_left_as_it_was() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    q, k, v, _ = inputs(20, 2, 1, torch.bfloat16)
    blocked_attention(q, k, v, [0, 20], SCALE)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("shared", [1, 9, QUERIES + 3])
@pytest.mark.parametrize("lengths", [[5], [QUERIES, 3], [1, KEEP, 2 * QUERIES + 5]], ids=str)
def test_a_shared_beginning_stands_before_every_sequence(lengths: list[int], shared: int) -> None:
    bounds = [0, *accumulate([shared, *lengths])]
    q, k, v, g = inputs(bounds[-1], 4, 2, torch.float64)
    got = blocked_attention(q, k, v, bounds, SCALE, shared)
    whole = [torch.cat([torch.arange(shared), torch.arange(a, b)]) for a, b in pairwise(bounds[1:])]
    parts = [reference(*(x[:, at] for x in (q, k, v)), [0, len(at)]) for at in whole]
    expected = torch.cat([parts[0][:shared], *(part[shared:] for part in parts)])
    torch.testing.assert_close(got, expected)
    for one, other in zip(*(torch.autograd.grad(out, (q, k, v), g) for out in (got, expected)), strict=True):
        torch.testing.assert_close(one, other)
