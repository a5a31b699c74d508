"""Gated units that keep less, against Transformers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from swiftune.models.gates import spare_gates

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 2}


def kept(output: torch.Tensor, hold: list[torch.Tensor]) -> int:
    """Bytes that autograd has put into ``hold``, weights left out."""
    return sum({t.untyped_storage().data_ptr(): t.nbytes for t in hold if t.shape[:1] == output.shape[:1]}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_the_same_and_less_is_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = LlamaMLP(LlamaConfig(**SIZES)).to(dtype)
    spared = copy.deepcopy(plain)
    assert spare_gates(spared) == 1
    x, g = torch.randn(7, 24).to(dtype), torch.randn(7, 24).to(dtype)
    results, bytes_kept = [], []
    for unit in (plain, spared):
        inputs, hold = x.clone().requires_grad_(), []

        def keep(tensor: torch.Tensor, hold: list[torch.Tensor] = hold) -> torch.Tensor:
            hold.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = unit(inputs)
        bytes_kept.append(kept(output, hold))
        results.append([output, *torch.autograd.grad(output, [inputs, *unit.parameters()], g)])
    for expected, got in zip(*results, strict=True):
        assert torch.equal(expected, got)
    assert bytes_kept[0] - bytes_kept[1] == 7 * 40 * dtype.itemsize


def test_a_unit_that_computes_something_else_is_left_alone() -> None:
    gelu = Gemma2MLP(Gemma2Config(**SIZES))
    more = LlamaMLP(LlamaConfig(**SIZES))
    more.norm = torch.nn.LayerNorm(40)
    assert spare_gates(torch.nn.ModuleList([gelu, more])) == 0
