"""Next-token cross-entropy from hidden states, in blocks: the full matrix of logits never exists.

The gradient of a block is computed as soon as its logits are there, so that they can be dropped; the backward pass
only scales what is stored. The idea of fusing head and loss is in Liger Kernel (arXiv:2410.10989, section 3.2).

Shapes: S supervised positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from swiftune.types import IGNORE

BLOCK = 512
"""Positions whose logits are held at once."""
ALIGN = 32
"""Positions are filled up to a multiple of this: oneDNN builds, and keeps, kernels for every new number of them."""


def linear_cross_entropy(
    hidden_SD: torch.Tensor,
    labels_S: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    head_parameters: list[torch.nn.Parameter],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the cross-entropies, and how many labels are the most likely token.

    Args:
        hidden_SD: hidden states of the supervised positions only.
        labels_S: int64, the token that each position predicts.
        head: hidden states to logits (soft-capping and scaling included), called on blocks.
        head_parameters: the trainable parameters that ``head`` uses; they receive gradients.

    Returns:
        The loss, a float32 scalar with a gradient; the number of right predictions, an int64 scalar without one.
    """
    rest = -len(labels_S) % ALIGN
    if rest:
        hidden_SD = torch.cat([hidden_SD, hidden_SD.new_zeros(rest, hidden_SD.shape[1])])
        labels_S = torch.cat([labels_S, labels_S.new_full((rest,), IGNORE)])
    if not torch.is_grad_enabled():
        loss = hidden_SD.new_zeros((), dtype=torch.float32)
        correct = labels_S.new_zeros(())
        for start in range(0, len(labels_S), BLOCK):
            block = slice(start, start + BLOCK)
            block_loss, block_correct = _block(hidden_SD[block], labels_S[block], head)
            loss += block_loss
            correct += block_correct
        return loss, correct
    return _LinearCrossEntropy.apply(hidden_SD, labels_S, head, *head_parameters)  # type: ignore[no-untyped-call, no-any-return]


def _block(
    hidden_SD: torch.Tensor, labels_S: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_SV = head(hidden_SD)
    correct = (logits_SV.detach().argmax(dim=-1) == labels_S).sum()
    return cross_entropy(logits_SV.float(), labels_S, reduction="sum", ignore_index=IGNORE), correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        labels_S: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        *parameters: torch.nn.Parameter,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = hidden_SD.new_zeros((), dtype=torch.float32)
        correct = labels_S.new_zeros(())
        hidden_grad_SD = torch.empty_like(hidden_SD)
        grads = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for start in range(0, len(labels_S), BLOCK):
            block = slice(start, start + BLOCK)
            with torch.enable_grad():
                h = hidden_SD[block].detach().requires_grad_()
                block_loss, block_correct = _block(h, labels_S[block], head)
                hidden_grad_SD[block], *block_grads = torch.autograd.grad(block_loss, [h, *parameters])
            loss += block_loss.detach()
            correct += block_correct
            for total, grad in zip(grads, block_grads, strict=True):
                total += grad
        ctx.save_for_backward(hidden_grad_SD, *grads)
        ctx.dtypes = [p.dtype for p in parameters]
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_grad_SD, *grads = ctx.saved_tensors
        scaled = [(grad * grad_loss).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
        return hidden_grad_SD * grad_loss.to(hidden_grad_SD.dtype), None, None, *scaled
