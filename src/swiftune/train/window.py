"""What is summed up between two logged steps."""

from __future__ import annotations

import time
from typing import Any

import torch


class Window:
    """Sums over the steps since the last logged one; tensors stay on the device until they are logged."""

    def __init__(self, device: torch.device) -> None:
        self.began = time.perf_counter()
        self.sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self.supervised = self.tokens = self.steps = 0
        self.grad_norm: Any = 0.0
        """Of the last step, before clipping."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint between two logged steps keeps of it."""
        kept = {name: value for name, value in vars(self).items() if name not in ("began", "grad_norm")}
        return kept | {"grad_norm": float(self.grad_norm)}

    @property
    def seconds(self) -> float:
        """Since it began, what was not training left out; no part of ``state``, which the clock has no part in."""
        return time.perf_counter() - self.began

    def go_on(self, state: dict[str, Any], seconds: float) -> None:
        """Puts back what ``state`` gave, after so many ``seconds``."""
        self.began = time.perf_counter() - seconds
        self.sums.copy_(state.pop("sums"))
        vars(self).update(state)
