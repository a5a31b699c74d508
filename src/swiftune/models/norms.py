"""Root mean square norms with a forward and a backward of their own, for a CPU.

Of a token x with D values and the weight w (RMSNorm, arXiv:1910.07467, equation 4):

    r = 1 / √(mean(x²) + ε)        n = r x        y = w n        dx = r (w dy - n mean(n w dy))        dw = Σ n dy

As in Transformers, r and n are computed in float32 and n is rounded to the dtype of x before it is weighed.

Shapes: T tokens (all leading dimensions), D values of a token.
"""

from __future__ import annotations

from typing import Any

import torch


def speed_up_norms(model: torch.nn.Module) -> int:
    """Gives every RMSNorm of ``model`` that computes the above the fast path, in place. Returns how many there are.

    Which those are is tried out: families differ in what they call a norm (Gemma's weight is 1 + w).
    """
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm") and _is_plain(module)]
    for norm in norms:
        norm.forward = _fast(norm)
    return len(norms)


def _epsilon(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@torch.no_grad()
def _is_plain(norm: Any) -> bool:
    weight_D, epsilon = getattr(norm, "weight", None), _epsilon(norm)
    if weight_D is None or epsilon is None or weight_D.ndim != 1:
        return False
    x_TD = torch.linspace(-2, 3, 3 * len(weight_D), dtype=weight_D.dtype, device=weight_D.device).view(3, -1)
    ours = _RMSNorm.apply(x_TD, weight_D, epsilon)  # type: ignore[no-untyped-call]
    return torch.allclose(norm(x_TD).float(), ours.float(), rtol=1e-2, atol=1e-3)


def _fast(norm: Any) -> Any:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return _RMSNorm.apply(hidden_states, norm.weight, _epsilon(norm))  # type: ignore[no-any-return, no-untyped-call]

    return forward


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        x_TD = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        square_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).square_()
        r_T1 = square_T1.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        n_TD = x_TD.mul_(r_T1).to(x.dtype)
        ctx.save_for_backward(n_TD, weight_D, r_T1)
        return weight_D * n_TD

    @staticmethod
    def backward(ctx: Any, grad_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        n_TD, weight_D, r_T1 = ctx.saved_tensors
        wide_TD = n_TD.to(r_T1.dtype, copy=True)
        g_TD = grad_TD.to(r_T1.dtype, copy=True)
        grad_weight_D = None
        if ctx.needs_input_grad[1]:
            grad_weight_D = (g_TD * wide_TD).flatten(0, -2).sum(0).to(weight_D.dtype)
        g_TD.mul_(weight_D.to(r_T1.dtype))
        along_T1 = (g_TD * wide_TD).sum(dim=-1, keepdim=True).mul_(-1 / n_TD.shape[-1])
        return wide_TD.mul_(along_T1).add_(g_TD).mul_(r_T1).to(n_TD.dtype), grad_weight_D, None
