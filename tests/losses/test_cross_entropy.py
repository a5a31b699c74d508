from __future__ import annotations

import pytest
import torch

from swiftune.losses import cross_entropy
from swiftune.losses.cross_entropy import linear_cross_entropy


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
