"""Head and cross-entropy beside Transformers' own loss: ``python -m benchmarks.loss``.

T hidden states, S of them supervised; forward and backward. Transformers computes the logits of all T,
and the loss in float32. Errors are against the same in float64; memory is what one call adds in a fresh process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks.measure import DTYPE, DTYPE_NAME, Report, command, fresh, in_turn, machine, peak_flops
from swiftune.losses.cross_entropy import linear_cross_entropy
from swiftune.types import IGNORE

HIDDEN = 576
CASES = ((1024, 512, 49_152), (1024, 1024, 49_152), (512, 256, 151_936))
"""T, S, V."""


def case(tokens: int, supervised: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, labels (of the same position) and a head, the same in every call."""
    torch.manual_seed(0)
    hidden_TD = torch.randn(tokens, HIDDEN).to(DTYPE)
    weight_VD = (torch.randn(vocabulary, HIDDEN) * 0.05).to(DTYPE)
    labels_T = torch.randint(0, vocabulary, (tokens,))
    labels_T[: tokens - supervised] = IGNORE
    return hidden_TD, labels_T, weight_VD


def theirs(hidden_TD: torch.Tensor, labels_T: torch.Tensor, weight_VD: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Loss and gradient by Transformers."""
    leaf = hidden_TD.detach().requires_grad_()
    loss = ForCausalLMLoss(leaf @ weight_VD.t(), None, len(weight_VD), shift_labels=labels_T, num_items_in_batch=1)
    loss.backward()
    return loss.item(), leaf.grad


def ours(hidden_TD: torch.Tensor, labels_T: torch.Tensor, weight_VD: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Loss and gradient on supervised positions, in blocks."""
    leaf = hidden_TD.detach().requires_grad_()
    chosen = labels_T != IGNORE
    loss, _ = linear_cross_entropy(leaf[chosen], labels_T[chosen], lambda h: h @ weight_VD.t(), [], len(weight_VD))
    loss.backward()
    return loss.item(), leaf.grad


def exact(hidden_TD: torch.Tensor, labels_T: torch.Tensor, weight_VD: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Loss and gradient in float64, of supervised positions in blocks, for the memory's sake."""
    weight, loss = weight_VD.double(), 0.0
    grad = torch.zeros_like(hidden_TD, dtype=torch.float64)
    for at in (labels_T != IGNORE).nonzero()[:, 0].split(256):
        leaf = hidden_TD[at].double().requires_grad_()
        part = cross_entropy(leaf @ weight.t(), labels_T[at], reduction="sum")
        (grad[at],) = torch.autograd.grad(part, leaf)
        loss += part.item()
    return loss, grad


def memory(which: str, sizes: tuple[int, int, int]) -> float:
    """MiB that one call adds in a fresh process."""
    code = (
        "import json\nfrom benchmarks import loss, measure\n"
        f"parts = loss.case(*{sizes!r})\nprint(json.dumps(measure.added_memory(lambda: loss.{which}(*parts))))"
    )
    return float(fresh(code))


def run(cases: Sequence[tuple[int, int, int]] = CASES, repeats: int = 2) -> Report:
    """Times, weighs and checks both."""
    report = Report(
        f"head and loss, hidden size {HIDDEN}, {DTYPE_NAME}, {machine()}",
        ("T, S, V", "whose", "seconds", "times ours", "MiB", "loss error", "gradient error", "peak share"),
    )
    peak = peak_flops()
    for sizes in cases:
        parts = case(*sizes)
        times = in_turn([lambda p=parts: theirs(*p), lambda p=parts: ours(*p)], repeats)  # type: ignore[misc]
        true_loss, true_grad = exact(*parts)
        found = theirs(*parts), ours(*parts)
        losses = [abs(loss / true_loss - 1) for loss, _ in found]
        grads = [float((grad.double() - true_grad).norm() / true_grad.norm()) for _, grad in found]
        flops = 4 * sizes[1] * HIDDEN * sizes[2]
        for number, whose in enumerate(("theirs", "ours")):
            seconds = times.median(number)
            figures = times.ratio(number), memory(whose, sizes), losses[number], grads[number], flops / seconds / peak
            report.add("{:,}, {:,}, {:,}".format(*sizes), whose, seconds, *figures)
    report.notes.append("Errors are relative to float64; peak share: of the matmul peak, by the work that is needed.")
    return report


if __name__ == "__main__":
    command(run)
