"""Our norms against Transformers'."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from swiftune.models.norms import speed_up_norms


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("shape", [(5, 48), (1, 7, 3, 48)])
def test_output_and_gradients_equal_transformers(
    kind: type[torch.nn.Module], dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    plain = kind(48, eps=1e-5).to(dtype)
    torch.nn.init.normal_(plain.weight, 1.0)
    fast = copy.deepcopy(plain)
    assert speed_up_norms(fast) == 1
    x, g = torch.randn(shape).to(dtype) * 3, torch.randn(shape).to(dtype)
    results = []
    for norm in (plain, fast):
        inputs = x.clone().requires_grad_()
        output = norm(inputs)
        results.append([output, *torch.autograd.grad(output, [inputs, norm.weight], g)])
    for expected, got in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        assert (got.double() - expected.double()).norm() < tolerance * expected.double().norm()


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    gemma = Gemma2RMSNorm(48)  # weighs with 1 + weight
    assert speed_up_norms(torch.nn.Sequential(gemma, torch.nn.LayerNorm(48))) == 0
