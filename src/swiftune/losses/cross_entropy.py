"""Next-token cross-entropy from hidden states, in blocks: the full matrix of logits never exists.

The gradient of a block is computed as soon as its logits are there, so that they can be dropped; the backward pass
only scales what is stored. The idea of fusing head and loss is in Liger Kernel (arXiv:2410.10989, section 3.2).

Of a position with logits z and label y, P = softmax(z), and m its largest logit:

    loss = log Σ exp(z) - z_y = m - log max(P) - z_y        dz = P - onehot(y)

Shapes: S supervised positions, D hidden size, V vocabulary; N positions of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

ALIGN = 32
"""Positions are filled up to a multiple of this: oneDNN builds, and keeps, kernels for every new number of them."""
BLOCK_VALUES = {"cpu": 2**23}
"""Logits of a block; 2²⁷ where it is no CPU."""
WIDE_VALUES = {"cpu": 2**20}
"""Logits in float32 at once: on a CPU as many as stay near its cores. All of a block elsewhere."""


def linear_cross_entropy(
    hidden_SD: torch.Tensor,
    labels_S: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    head_parameters: list[torch.nn.Parameter],
    vocabulary: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the cross-entropies, and how many labels are the most likely token (or as likely as that).

    Args:
        hidden_SD: hidden states of the supervised positions only.
        labels_S: int64, the token that each position predicts.
        head: hidden states to logits (soft-capping and scaling included), called on blocks.
        head_parameters: the trainable parameters that ``head`` uses; they receive gradients.
        vocabulary: logits of a position; decides how many positions make a block.

    Returns:
        The loss, a float32 scalar with a gradient; the number of right predictions, an int64 scalar without one.
    """
    positions = block_positions(vocabulary, hidden_SD.device.type)
    learns = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(hidden_SD, labels_S, head, positions, learns, *head_parameters)  # type: ignore[no-untyped-call, no-any-return]


def block_bytes(vocabulary: int, device: str, width: int) -> int:
    """Bytes of a block: logits and their gradient, ``width`` bytes each; in float32 scores and their softmax."""
    values = block_positions(vocabulary, device) * vocabulary
    return 2 * values * width + 2 * min(values, WIDE_VALUES.get(device, values)) * 4


def block_positions(vocabulary: int, device: str) -> int:
    """Positions whose logits are held at once."""
    fitting = BLOCK_VALUES.get(device, 2**27) // vocabulary // ALIGN * ALIGN
    return min(max(2 * ALIGN, fitting), 1024)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        labels_S: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        positions: int,
        learns: bool,
        *parameters: torch.nn.Parameter,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = hidden_SD.new_zeros((), dtype=torch.float32)
        correct = labels_S.new_zeros(())
        hidden_grad_SD = torch.empty_like(hidden_SD) if learns else None
        grads = [torch.zeros_like(p, dtype=torch.float32) for p in parameters] if learns else []
        scratch: dict[str, torch.Tensor] = {}
        for block, filled_ND, labels_N in _blocks(hidden_SD, labels_S, positions):
            with torch.set_grad_enabled(learns):
                logits_NV = head(filled_ND.requires_grad_(learns))
            block_loss, block_correct, grad_NV = _block(logits_NV.detach(), labels_N, learns, scratch)
            loss += block_loss
            correct += block_correct
            if hidden_grad_SD is not None:
                hidden_grad_ND, *block_grads = torch.autograd.grad(logits_NV, [filled_ND, *parameters], grad_NV)
                hidden_grad_SD[block] = hidden_grad_ND[: len(labels_N)]
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
        return hidden_grad_SD * grad_loss, None, None, None, None, *scaled


def _blocks(
    hidden_SD: torch.Tensor, labels_S: torch.Tensor, positions: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Blocks of positions: where they are, their hidden states filled up to a multiple of ``ALIGN``, their labels."""
    for start in range(0, len(labels_S), positions):
        block = slice(start, min(start + positions, len(labels_S)))
        rest = -(block.stop - start) % ALIGN
        yield block, torch.nn.functional.pad(hidden_SD[block].detach(), (0, 0, 0, rest)), labels_S[block]


def _block(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, learns: bool, scratch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Loss, right predictions, and the gradient of the logits; logits beyond the labels count for nothing."""
    size = max(1, WIDE_VALUES.get(logits_NV.device.type, logits_NV.numel()) // logits_NV.shape[1])
    if not scratch:
        wide = torch.empty_like(logits_NV[:size], dtype=torch.float32)
        scratch |= {"scores": wide, "weights": torch.empty_like(wide), "grad": torch.empty_like(logits_NV)}
    grad_NV = scratch["grad"][: len(logits_NV)]
    losses, corrects = [], []
    for start in range(0, len(labels_N), size):
        part = slice(start, min(start + size, len(labels_N)))
        n = part.stop - start
        scores_nV, weights_nV = scratch["scores"][:n], scratch["weights"][:n]
        scores_nV.copy_(logits_NV[part])
        torch.softmax(scores_nV, dim=-1, out=weights_nV)
        at = labels_N[part, None]
        own_n1, best_n1 = scores_nV.gather(1, at), scores_nV.amax(dim=-1, keepdim=True)
        losses.append((best_n1 - weights_nV.amax(dim=-1, keepdim=True).log() - own_n1).sum())
        corrects.append((own_n1 == best_n1).sum())
        if learns:
            weights_nV.scatter_add_(1, at, weights_nV.new_full((n, 1), -1.0))
            grad_NV[part] = weights_nV
    grad_NV[len(labels_N) :] = 0.0
    return torch.stack(losses).sum(), torch.stack(corrects).sum(), grad_NV if learns else None
