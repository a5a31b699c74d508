"""Plain LoRA layers with a forward and a backward of their own: fewer passes over memory than the layer by layer graph.

Layers that are given the same input (q, k, v; gate, up) are one function: the input is kept once, its dropout is drawn
once, and the products with their A's, laid below each other, are one product. Per layer, with s = scaling / (1 - p) and
m the dropout mask (LoRA, arXiv:2106.09685, section 4.1):

    h  = (m * x) Aᵀ        y  = x Wᵀ + b + s h Bᵀ
    gh = s g B             dB = s gᵀ h        dA = ghᵀ (m * x)        dx = Σ g W + m * Σ gh A

In PEFT each layer draws a mask of its own. Here layers with one input miss the same values of it in a pass; what each
of them misses, and how often, is as it is there.

Everything else that PEFT offers (DoRA, several adapters, quantized bases, ...) keeps PEFT's own path.

Shapes: T tokens, D inputs, O outputs, R rank; S the sum of the ranks of layers with one input.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import linear

from swiftune.runtime.seeds import generator


def speed_up(model: torch.nn.Module, trial: Callable[[], object] | None = None) -> int:
    """Gives every plain LoRA layer of ``model`` the fast path, in place. Returns how many there are.

    Args:
        model: with PEFT's layers inside.
        trial: runs the model once, which shows the layers that are given the same input; by default on a few tokens.
    """
    from peft.tuners.lora import Linear

    plain = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    waiting = _Waiting()
    for group in _sharing_an_input(model, plain, trial or (lambda: _try_out(model))):
        shared = _Shared([_Layer(module) for module in group], waiting)
        for index, module in enumerate(group):
            module.forward = _fast(shared, index, module.forward)
    return len(plain)


def _is_plain(module: Any) -> bool:
    base, (adapter, *more) = module.base_layer, module.active_adapters
    return (
        type(base) is torch.nn.Linear
        and not more
        and adapter in module.lora_A
        and adapter not in module.lora_variant
        and not module.lora_bias[adapter]
        and not module.fan_in_fan_out
        and not any(parameter.requires_grad for parameter in base.parameters())
    )


@torch.no_grad()
def _sharing_an_input(model: torch.nn.Module, layers: list[Any], trial: Callable[[], object]) -> list[list[Any]]:
    """The layers in groups; within one they are called one after the other on the very same tensor."""
    calls: list[tuple[Any, torch.Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0]))) for layer in layers]
    was_training = model.training
    model.eval()
    try:
        trial()
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if sorted(id(layer) for layer, _ in calls) != sorted(map(id, layers)):
        return [[layer] for layer in layers]  # some are called twice, or not at all
    groups: list[list[Any]] = []
    last = None
    for layer, x in calls:
        if x is last:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last = x
    return groups


def _try_out(model: torch.nn.Module) -> None:
    parameter = next(model.parameters())
    half = parameter.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(parameter.device.type, parameter.dtype if half else torch.bfloat16, enabled=half):
        model(input_ids=torch.arange(4, device=parameter.device)[None], use_cache=False)


class _Layer:
    """What the function needs of one LoRA layer."""

    def __init__(self, module: Any) -> None:
        (self.adapter,) = module.active_adapters
        self.module = module
        self.base = module.base_layer
        self.a, self.b = module.lora_A[self.adapter], module.lora_B[self.adapter]
        self.dropout = getattr(module.lora_dropout[self.adapter], "p", 0.0)

    def fast(self) -> bool:
        """Whether the layer is still what it was."""
        module = self.module
        return not module.disable_adapters and not module.merged and module.active_adapters == [self.adapter]


class _Cast:
    """The A's and B's of layers with one input in another dtype: converted once a step, not once a micro-batch."""

    def __init__(self) -> None:
        self._kept: tuple[Any, tuple[torch.Tensor, list[torch.Tensor]]] | None = None

    def __call__(self, layers: list[_Layer], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """All A's as one matrix ``(S, D)``, and each B."""
        weights = [(layer.a.weight, layer.b.weight) for layer in layers]
        state = dtype, [(p._version, p.data_ptr()) for pair in weights for p in pair]
        kept = self._kept  # read once, written once: several threads may be here
        if kept is None or kept[0] != state:
            a_SD = torch.cat([a_RD.detach().to(dtype) for a_RD, _ in weights])
            kept = self._kept = state, (a_SD, [b_OR.detach().to(dtype) for _, b_OR in weights])
        return kept[1]


class _Waiting(threading.local):
    """Outputs that are computed for layers still to be called.

    One for the whole model and thread: what a pass that broke off has left is let go as soon as the next one begins.
    """

    def __init__(self) -> None:
        self.x: torch.Tensor | None = None
        self.of: dict[_Layer, torch.Tensor] = {}


@dataclass(frozen=True)
class _Shared:
    """Layers with the same input."""

    layers: list[_Layer]
    waiting: _Waiting
    cast: _Cast = field(default_factory=_Cast)

    def output(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The output of layer ``index``. The first one's call computes that of all."""
        waiting, layer = self.waiting, self.layers[index]
        if x is waiting.x and layer in waiting.of:
            output = waiting.of.pop(layer)
            if not waiting.of:
                waiting.x = None
            return output
        waiting.x, waiting.of = None, {}
        alike = len({layer.dropout for layer in self.layers}) == 1
        if index or not alike or not all(layer.fast() for layer in self.layers):
            return _apply(x, [layer], _Cast())[0]
        first, *others = _apply(x, self.layers, self.cast)
        if others:
            waiting.x, waiting.of = x, dict(zip(self.layers[1:], others, strict=True))
        return first


def _fast(shared: _Shared, index: int, slow: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not shared.layers[index].fast():
            return slow(x, *args, **kwargs)
        return shared.output(index, x)

    return forward


def _apply(x: torch.Tensor, layers: list[_Layer], cast: _Cast) -> tuple[torch.Tensor, ...]:
    x = x.to(layers[0].base.weight.dtype)  # float32 where the embeddings are trained, too
    p = layers[0].dropout if layers[0].module.training else 0.0
    scalings = [layer.module.scaling[layer.adapter] / (1 - p) for layer in layers]
    a_SD, bs_OR = cast(layers, x.dtype)
    tensors: list[torch.Tensor | None] = []
    for layer, b_OR in zip(layers, bs_OR, strict=True):
        tensors += [layer.a.weight, layer.b.weight, layer.base.weight, layer.base.bias, b_OR]
    return _LoraLinear.apply(x, p, scalings, a_SD, *tensors)  # type: ignore[no-any-return,no-untyped-call]


class _LoraLinear(torch.autograd.Function):
    """Five tensors a layer: A and B, which gradients are for, then W, b, and B in the dtype of the input."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, p: float, scalings: list[float], a_SD: torch.Tensor, *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        x_TD = x.reshape(-1, x.shape[-1])
        dropped = _draw(x_TD, p) if p else None
        h_TS = linear(_without(x_TD, dropped), a_SD)
        outputs: list[torch.Tensor] = []
        kept: list[torch.Tensor | None] = [x_TD, dropped, h_TS, a_SD]
        ctx.ranks = [len(a_RD) for a_RD, *_ in _by_layer(tensors)]
        parts = torch.split(h_TS, ctx.ranks, dim=1)
        for h_TR, scaling, (_, _, weight_OD, bias_O, b_OR) in zip(parts, scalings, _by_layer(tensors), strict=True):
            y_TO = linear(x_TD, weight_OD, bias_O)
            y_TO.addmm_(h_TR, b_OR.t(), alpha=scaling)
            outputs.append(y_TO.view(*x.shape[:-1], -1))
            kept += [weight_OD, b_OR]
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        ctx.scalings, ctx.shape = scalings, x.shape
        ctx.dtypes = [(a_RD.dtype, b_OR.dtype) for a_RD, b_OR, *_ in _by_layer(tensors)]
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_TD, dropped, h_TS, a_SD, *kept = ctx.saved_tensors
        grad_x_TD: torch.Tensor | None = None
        gh_TS = torch.zeros_like(h_TS)
        grads_b: list[torch.Tensor | None] = []
        parts = zip(torch.split(gh_TS, ctx.ranks, dim=1), torch.split(h_TS, ctx.ranks, dim=1), strict=True)
        for index, (grad, (gh_TR, h_TR)) in enumerate(zip(grads, parts, strict=True)):
            if grad is None:
                grads_b.append(None)
                continue
            weight_OD, b_OR = kept[2 * index : 2 * index + 2]
            g_TO, scaling = grad.reshape(-1, grad.shape[-1]), ctx.scalings[index]
            torch.mul(g_TO @ b_OR, scaling, out=gh_TR)
            grad_b_RO = (h_TR.t() @ g_TO).to(ctx.dtypes[index][1])
            grads_b.append(grad_b_RO.mul_(scaling).t().contiguous())
            if ctx.needs_input_grad[0]:
                grad_x_TD = g_TO @ weight_OD if grad_x_TD is None else grad_x_TD.addmm_(g_TO, weight_OD)
        grad_a_SD = gh_TS.t() @ _without(x_TD, dropped)
        if grad_x_TD is not None and dropped is None:
            grad_x_TD.addmm_(gh_TS, a_SD)
        elif grad_x_TD is not None:
            grad_x_TD.add_(_drop_(gh_TS @ a_SD, dropped))
        result: list[torch.Tensor | None] = []
        for grad_a_RD, grad_b_OR, (dtype, _) in zip(
            torch.split(grad_a_SD, ctx.ranks), grads_b, ctx.dtypes, strict=True
        ):
            result += [None if grad_b_OR is None else grad_a_RD.to(dtype), grad_b_OR, None, None, None]
        return None if grad_x_TD is None else grad_x_TD.view(ctx.shape), None, None, None, *result


def _by_layer(tensors: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [tensors[start : start + 5] for start in range(0, len(tensors), 5)]


# -- dropout ---------------------------------------------------------------------------------------------------------


def _draw(like_TD: torch.Tensor, p: float) -> torch.Tensor:
    """Which values are dropped, each with probability ``p``: a mask, or on a CPU their places in memory.

    On a CPU random numbers are drawn one by one, so the gaps between dropped values are drawn: geometrically
    distributed, one for each dropped value and not one for each value.
    """
    count = like_TD.numel()
    if like_TD.device.type != "cpu":
        return torch.rand(like_TD.shape, device=like_TD.device, generator=generator()) < p
    places: list[torch.Tensor] = []
    last = -1
    while last < count:
        size = int((count - last) * p + 6 * math.sqrt((count - last) * p)) + 16
        uniform = torch.empty(size).uniform_(2**-25, 1, generator=generator())  # never 0
        gaps = uniform.log_().mul_(1 / math.log1p(-p)).to(torch.int64).add_(1)
        places.append(gaps.cumsum_(0).add_(last))
        last = int(places[-1][-1])
    flat = torch.cat(places) if len(places) > 1 else places[0]
    return flat[: int(torch.searchsorted(flat, count))]


_scratch: dict[tuple[int, torch.device, torch.dtype], torch.Tensor] = {}
"""By thread: where the last input without its dropped values was: memory that is still in the processor's cache."""


def _without(x_TD: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    """``x_TD`` without what is dropped; until the next call, where it is a copy."""
    if dropped is None:
        return x_TD
    kind, count = (threading.get_ident(), x_TD.device, x_TD.dtype), x_TD.numel()
    if kind not in _scratch or _scratch[kind].numel() < count:
        _scratch[kind] = torch.empty(count, dtype=x_TD.dtype, device=x_TD.device)
    return _drop_(_scratch[kind][:count].view_as(x_TD).copy_(x_TD), dropped)


def _drop_(x_TD: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """Sets the dropped values of a contiguous tensor to zero, in place."""
    if dropped.dtype == torch.bool:
        return x_TD.masked_fill_(dropped, 0.0)
    x_TD.view(-1).index_fill_(0, dropped, 0.0)
    return x_TD
