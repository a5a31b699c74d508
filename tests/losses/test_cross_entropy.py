from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from swiftune.losses import cross_entropy
from swiftune.losses.cross_entropy import linear_cross_entropy
from swiftune.types import IGNORE


@pytest.mark.parametrize("positions", [0, 1, 64, 2 * 64 + 3])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_plain_loss_and_gradients(positions: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.BLOCK_VALUES, "cpu", 64 * 50)
    torch.manual_seed(positions)
    head = torch.nn.Linear(16, 50, bias=bias)
    hidden = torch.randn(positions, 16, requires_grad=True)
    labels = torch.randint(0, 50, (positions,))
    parameters = list(head.parameters())
    loss, correct = linear_cross_entropy(hidden, labels, head, parameters, 50)
    actual = torch.autograd.grad(loss * 0.5, [hidden, *parameters])
    logits = head(hidden)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    expected = torch.autograd.grad(plain * 0.5, [hidden, *parameters])
    torch.testing.assert_close(loss, plain)
    assert int(correct) == int((logits.argmax(-1) == labels).sum())
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_a_frozen_head_gets_no_gradient_and_no_grad_mode_gives_the_same_loss() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50).requires_grad_(False)
    hidden = torch.randn(7, 16, requires_grad=True)
    labels = torch.randint(0, 50, (7,))
    loss, _ = linear_cross_entropy(hidden, labels, head, [], 50)
    loss.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, labels, head, [], 50)[0], loss.detach())


@pytest.mark.parametrize("scale", [1.0, 1 / 3.7])
def test_in_bfloat16_it_is_as_exact_as_transformers_own(scale: float) -> None:
    """Loss and gradient of the hidden states, against float64; divided by a number of tokens, too."""
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 3000, bias=False).bfloat16().requires_grad_(False)
    hidden = torch.randn(150, 64).bfloat16()
    labels = torch.randint(0, 3000, (150,))

    def ours(leaf: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(leaf, labels, head, [], 3000)[0]

    def theirs(leaf: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(labels, (1, 0), value=IGNORE)[None]  # it shifts them by one
        logits = torch.nn.functional.pad(head(leaf), (0, 0, 0, 1))[None]
        return ForCausalLMLoss(logits, padded, 3000, num_items_in_batch=1)

    def exact(leaf: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(leaf @ head.weight.double().T, labels, reduction="sum")

    def taken(loss_of: Callable[[torch.Tensor], torch.Tensor], by: float, dtype: torch.dtype) -> list[torch.Tensor]:
        leaf = hidden.to(dtype).requires_grad_()
        loss = loss_of(leaf) * by
        return [loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()]

    true = taken(exact, scale, torch.float64)
    (our_loss, our_grad), (their_loss, their_grad) = (
        [float((found - expected).norm() / expected.norm()) for found, expected in zip(parts, true, strict=True)]
        for parts in (taken(ours, scale, torch.bfloat16), taken(theirs, scale, torch.bfloat16))
    )
    assert our_loss <= 1.1 * their_loss + 1e-6
    assert our_grad <= 1.1 * their_grad
    scaled, plain = (taken(ours, by, torch.bfloat16)[1].norm() for by in (scale, 1.0))
    assert float(scaled / plain) == pytest.approx(scale, rel=2e-4)
