"""Our LoRA layer against PEFT's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from swiftune.config import SftArguments
from swiftune.models.load import load_model
from swiftune.tuners import attach_lora
from swiftune.tuners.fast_lora import _keep, _LoraLinear, speed_up


def pair(dtype: torch.dtype, bias: bool) -> tuple[Any, Any]:
    """Two equal models of one LoRA layer, the second with the fast path."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias)).to(dtype)
    plain = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["0"], lora_dropout=0.0))
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    fast = copy.deepcopy(plain)
    assert speed_up(fast) == 1
    return plain, fast


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24)])
def test_equals_peft(dtype: torch.dtype, tolerance: float, bias: bool, shape: tuple[int, ...]) -> None:
    plain, fast = pair(dtype, bias)
    x = torch.randn(shape, dtype=dtype)
    g = torch.randn(*shape[:-1], 40, dtype=dtype)
    results = []
    for model in (plain, fast):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(inputs)
        output.backward(g)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({"output": output.detach(), "input": inputs.grad, **grads})
    assert results[0].keys() == results[1].keys()
    for key, expected in results[0].items():
        actual = results[1][key]
        assert actual.dtype == expected.dtype
        difference = (actual.double() - expected.double()).norm() / expected.double().norm()
        assert difference < tolerance, key


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_gradient_is_the_derivative(p: float) -> None:
    torch.manual_seed(0)
    x, w, b, a, up = (
        torch.randn(shape, dtype=torch.float64, requires_grad=shape != (3, 4))
        for shape in ((5, 4), (3, 4), (3,), (2, 4), (3, 2))
    )
    bias = b.detach()

    def function(x: torch.Tensor, a: torch.Tensor, up: torch.Tensor) -> Any:
        torch.manual_seed(1)  # the same mask in every evaluation
        return _LoraLinear.apply(x, w, bias, a, up, 2.0, p)  # type: ignore[no-untyped-call]

    assert torch.autograd.gradcheck(function, (x, a, up))


def test_dropout_keeps_what_it_says_and_follows_the_seed() -> None:
    like = torch.ones(1000, 301)
    torch.manual_seed(3)
    kept = _keep(like, 0.05)
    assert kept.mean().item() == pytest.approx(0.95, abs=0.002)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean(dim=0).std().item() == pytest.approx((0.05 * 0.95 / 1000) ** 0.5, rel=0.2)  # independent draws
    torch.manual_seed(3)
    assert torch.equal(_keep(like, 0.05), kept)


def test_dropout_is_off_in_evaluation_and_unbiased_in_training() -> None:
    plain, _ = pair(torch.float32, bias=True)
    plain.base_model.model[0].lora_dropout["default"] = torch.nn.Dropout(0.5)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    x = torch.randn(3, 24)
    torch.testing.assert_close(fast.eval()(x), plain.eval()(x))
    fast.train()
    mean = torch.stack([fast(x).detach() for _ in range(4000)]).mean(dim=0)
    torch.testing.assert_close(mean, plain(x), rtol=0.1, atol=0.3)


def test_only_plain_layers_are_touched_and_adapters_can_still_be_switched_off(tiny_qwen2: Path) -> None:
    def tuned(**settings: Any) -> Any:
        return attach_lora(load_model(tiny_qwen2, dtype=torch.float32), SftArguments(**settings))

    assert speed_up(tuned(use_dora=True)) == 0
    assert speed_up(tuned(lora_bias="all")) == 8  # Qwen2's q, k and v have a bias, which is trained then
    model = tuned()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(9)[None]
    expected = model.eval()(ids).logits
    assert speed_up(model) == 14
    torch.testing.assert_close(model(ids).logits, expected)
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, load_model(tiny_qwen2, dtype=torch.float32).eval()(ids).logits)
