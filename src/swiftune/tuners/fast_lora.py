"""Plain LoRA layers with a forward and a backward of their own: fewer passes over memory than the layer by layer graph.

Per layer, with s = scaling / (1 - p) and m the dropout mask (LoRA, arXiv:2106.09685, section 4.1):

    h  = (m * x) Aᵀ        y  = x Wᵀ + b + s h Bᵀ
    gh = s g B             dB = s gᵀ h        dA = ghᵀ (m * x)        dx = g W + m * (gh A)

Everything else that PEFT offers (DoRA, several adapters, quantized bases, ...) keeps PEFT's own path.

Shapes: T tokens, D inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear


def speed_up(model: torch.nn.Module) -> int:
    """Gives every plain LoRA layer of ``model`` the fast path, in place. Returns how many there are."""
    from peft.tuners.lora import Linear

    plain = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    for module in plain:
        module.forward = _fast(module, module.forward)
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


def _fast(module: Any, slow: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    (adapter,) = module.active_adapters
    base, a, b = module.base_layer, module.lora_A[adapter], module.lora_B[adapter]
    dropout = getattr(module.lora_dropout[adapter], "p", 0.0)

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if module.disable_adapters or module.merged or module.active_adapters != [adapter] or args or kwargs:
            return slow(x, *args, **kwargs)
        p = dropout if module.training else 0.0
        scaling = module.scaling[adapter]
        x = x.to(base.weight.dtype)  # float32 where the embeddings are trained, too
        return _LoraLinear.apply(x, base.weight, base.bias, a.weight, b.weight, scaling, p)  # type: ignore[no-any-return,no-untyped-call]

    return forward


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OD: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RD: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
        p: float,
    ) -> torch.Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        scaling = scaling / (1 - p)
        keep_TD = _keep(x_TD, p) if p else None
        dropped_TD = x_TD if keep_TD is None else x_TD * keep_TD
        y_TO = linear(x_TD, weight_OD, bias_O)
        h_TR = linear(dropped_TD, a_RD.to(x.dtype))
        y_TO.addmm_(h_TR, b_OR.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x_TD, weight_OD, a_RD, b_OR, h_TR, keep_TD)
        ctx.scaling, ctx.shape = scaling, x.shape
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TD, weight_OD, a_RD, b_OR, h_TR, keep_TD = ctx.saved_tensors
        g_TO = grad.reshape(-1, grad.shape[-1])
        gh_TR = (g_TO @ b_OR.to(g_TO.dtype)).mul_(ctx.scaling)
        dropped_TD = x_TD if keep_TD is None else x_TD * keep_TD
        grad_a_RD = (gh_TR.t() @ dropped_TD).to(a_RD.dtype)
        grad_b_OR = (g_TO.t() @ h_TR).to(b_OR.dtype).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = g_TO @ weight_OD
            if keep_TD is None:
                grad_x.addmm_(gh_TR, a_RD.to(g_TO.dtype))
            else:
                grad_x.addcmul_(gh_TR @ a_RD.to(g_TO.dtype), keep_TD)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a_RD, grad_b_OR, None, None


def _keep(like_TD: torch.Tensor, p: float) -> torch.Tensor:
    """1 where an input is kept, 0 where it is dropped, in the dtype of ``like_TD``.

    A draw of 64 bits decides on four values, each to within 2⁻¹⁶ of its probability: on a CPU the draws are serial.
    """
    count = like_TD.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=like_TD.device).random_(-(2**63), None)
    threshold = round(p * 2**16) - 2**15
    return (bits.view(torch.int16)[:count] >= threshold).view_as(like_TD).to(like_TD.dtype)
