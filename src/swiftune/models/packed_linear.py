"""Linear layers whose weights are laid out beforehand as oneDNN reads them: for few rows on a CPU, in bfloat16.

A plain product of a few rows in bfloat16 goes through the weights in an order that costs up to twice the time.
The laid out copy is a second one of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

ROWS = 16
"""Rows that the layout is chosen for."""
SMALL = 64
"""Layers with fewer inputs or outputs stay as they are."""


class PackedLinears:
    """The layers of ``model`` that gain by it, with their weights as they are now."""

    def __init__(self, model: torch.nn.Module) -> None:
        layers = [module for module in model.modules() if type(module) is torch.nn.Linear and _gains(module)]
        self._forwards = [(layer, _packed(layer)) for layer in layers]

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which the layers compute with the copies."""
        for layer, forward in self._forwards:
            layer.forward = forward  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            for layer, _ in self._forwards:
                del layer.forward


def _gains(layer: torch.nn.Linear) -> bool:
    weight_OD = layer.weight
    return (
        weight_OD.device.type == "cpu"
        and weight_OD.dtype == torch.bfloat16
        and min(weight_OD.shape) >= SMALL
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


@torch.no_grad()
def _packed(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    weight: Any = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
    bias_O = None if layer.bias is None else layer.bias.detach()
    linear = torch.ops.mkldnn._linear_pointwise.default

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = linear(x, weight, bias_O, "none", [], "")
        return y

    return forward
