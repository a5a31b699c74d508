"""Our LoRA layer against PEFT's."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from swiftune.config import SftArguments
from swiftune.models.load import load_model
from swiftune.tuners import attach_lora
from swiftune.tuners.fast_lora import _draw, _drop_, _LoraLinear, speed_up


def pair(dtype: torch.dtype, bias: bool) -> tuple[Any, Any]:
    """Two equal models of one LoRA layer, the second with the fast path."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias)).to(dtype)
    plain = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["0"], lora_dropout=0.0))
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    fast = copy.deepcopy(plain)
    assert speed_up(fast, lambda: fast(torch.zeros(1, 24, dtype=dtype))) == 1
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
    """Of two layers with one input: three outputs of the first with a bias, two of the second without."""
    torch.manual_seed(0)
    x, a, up, a2, up2 = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 4), (2, 4), (3, 2), (1, 4), (2, 1))
    )
    w, bias, w2 = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 4), (3,), (2, 4)))

    def function(*leaves: torch.Tensor) -> Any:
        torch.manual_seed(1)  # the same masks in every evaluation
        x, a, up, a2, up2 = leaves
        first, second = (a, up, w, bias, up.detach()), (a2, up2, w2, None, up2.detach())
        both = torch.cat([a.detach(), a2.detach()])
        return _LoraLinear.apply(x, p, [2.0, 0.5], both, *first, *second)  # type: ignore[no-untyped-call]

    assert torch.autograd.gradcheck(function, (x, a, up, a2, up2))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_that_share_an_input_give_what_peft_gives(tiny_qwen2: Path, checkpointing: bool) -> None:
    grads = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = attach_lora(load_model(tiny_qwen2, dtype=torch.float32), SftArguments(lora_dropout=0.0)).train()
        model.double()  # both are 1e-5 from it in float32, each in its own way
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        if fast:
            speed_up(model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        ids = torch.arange(9)[None]
        loss = sum(model(input_ids=ids + i, labels=ids + i, use_cache=False).loss for i in range(2))
        loss.backward()  # type: ignore[attr-defined]
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(grads[0]) == 28
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, msg=name)


def test_layers_that_share_an_input_are_computed_together(tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_lora(load_model(tiny_qwen2, dtype=torch.float32), SftArguments()).train()
    speed_up(model)
    calls = []
    forward = _LoraLinear.forward

    def counted(ctx: Any, x: torch.Tensor, p: float, scalings: list[float], *tensors: Any) -> Any:
        calls.append(len(scalings))
        return forward(ctx, x, p, scalings, *tensors)

    monkeypatch.setattr(_LoraLinear, "forward", counted)
    model(input_ids=torch.arange(5)[None], use_cache=False)
    assert calls == [3, 1, 2, 1] * 2  # q k v, o, gate up, down


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_dropout_drops_what_it_says_independently_and_follows_the_seed(p: float) -> None:
    like = torch.ones(1000, 301)
    torch.manual_seed(3)
    dropped = _draw(like, p)
    kept = _drop_(like.clone(), dropped)
    assert kept.mean().item() == pytest.approx(1 - p, abs=0.003)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    for one, other in ((kept[:, :-1], kept[:, 1:]), (kept[:-1], kept[1:])):  # neighbours know nothing of each other
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs() < 0.01
    for edge in (kept[:, 0], kept[:, -1], kept[0], kept[-1]):
        assert edge.mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / len(edge)) ** 0.5)
    torch.manual_seed(3)
    assert torch.equal(_draw(like, p), dropped)


def test_every_place_is_dropped_as_often_as_any_other() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(7)
    for _ in range(20_000):
        counts += 1 - _drop_(torch.ones(7), _draw(torch.ones(7), 0.3))
    torch.testing.assert_close(counts / 20_000, torch.full((7,), 0.3), atol=0.015, rtol=0)


def test_dropout_is_off_in_evaluation_and_unbiased_in_training() -> None:
    plain, _ = pair(torch.float32, bias=True)
    plain.base_model.model[0].lora_dropout["default"] = torch.nn.Dropout(0.5)
    fast = copy.deepcopy(plain)
    speed_up(fast, lambda: fast(torch.zeros(1, 24)))
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
    model = tuned().double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(9)[None]
    expected = model.eval()(ids).logits
    assert speed_up(model) == 14
    torch.testing.assert_close(model(ids).logits, expected)
    base = load_model(tiny_qwen2, dtype=torch.float32).double().eval()
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, base(ids).logits)


def test_what_a_broken_off_pass_has_left_is_let_go_by_the_next(tiny_qwen2: Path) -> None:
    """Memory ran out between q and k, say: k's and v's outputs hold the whole graph before them."""
    model = attach_lora(load_model(tiny_qwen2, dtype=torch.float32), SftArguments(lora_dropout=0.0)).train()
    speed_up(model)
    last = model.get_base_model().model.layers[-1].self_attn

    def fail(*_: Any) -> None:
        raise MemoryError

    hook = last.k_proj.register_forward_pre_hook(fail)
    ids = torch.arange(3, 9)[None]
    alive = weakref.WeakSet[torch.Tensor]()
    first = model.get_base_model().model.layers[0].mlp
    watching = first.register_forward_hook(lambda module, args, output: alive.add(output))
    with pytest.raises(MemoryError):
        model(input_ids=ids, use_cache=False)
    hook.remove()
    watching.remove()
    seen: list[int] = []
    hook = first.register_forward_pre_hook(lambda module, args: seen.append(len(alive)))
    model(input_ids=ids, use_cache=False)
    hook.remove()
    assert seen == [0]
