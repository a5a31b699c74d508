"""Gated linear units that keep less for the backward pass, for a CPU.

Of a gate g and a value u (SwiGLU, arXiv:2002.05202, equation 6; its product with the weights W2 is left to the layer):

    y = silu(g) u        du = silu(g) dy        dg = silu'(g) u dy

Autograd keeps g, silu(g) and u; silu(g) is computed again here. The bits are the same.
"""

from __future__ import annotations

from typing import Any

import torch


def spare_gates(model: torch.nn.Module) -> int:
    """Has every gated unit of ``model`` that computes the above keep less, in place. Returns how many there are.

    Which those are is tried out: families name their layers alike and differ in what they compute.
    """
    units = [module for module in model.modules() if _is_plain(module)]
    for unit in units:
        unit.forward = _spared(unit)
    return len(units)


@torch.no_grad()
def _is_plain(unit: Any) -> bool:
    names = {name for name, _ in unit.named_children()}
    if names != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    weight = next(unit.gate_proj.parameters())
    if not weight.is_floating_point() or not hasattr(unit.gate_proj, "in_features"):
        return False
    x_TD = torch.linspace(-2, 3, 3 * unit.gate_proj.in_features, dtype=weight.dtype, device=weight.device).view(3, -1)
    was_training = unit.training
    unit.eval()
    try:
        return torch.equal(unit(x_TD), _spared(unit)(x_TD))
    finally:
        unit.train(was_training)


def _spared(unit: Any) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return unit.down_proj(_Gated.apply(unit.gate_proj(x), unit.up_proj(x)))  # type: ignore[no-any-return, no-untyped-call]

    return forward


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, torch.nn.functional.silu(gate).mul_(grad)
