"""Random seeds, and the generator that a thread draws from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_everything(seed: int, *, process: int = 0, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and PyTorch; processes draw from streams of their own.

    Args:
        deterministic: refuse PyTorch operations whose result varies from run to run (``--full_determinism``).
    """
    import random

    import numpy as np
    import torch

    random.seed(seed + process)
    np.random.seed((seed + process) % 2**32)
    torch.manual_seed(seed + process)
    if deterministic:
        torch.use_deterministic_algorithms(True)


class _Own(threading.local):
    generator: torch.Generator | None = None


_own = _Own()


def generator() -> torch.Generator | None:
    """What this thread draws from; ``None`` is PyTorch's default generator, which all threads share."""
    return _own.generator


@contextmanager
def drawing_from(own: torch.Generator) -> Iterator[None]:
    """Gives this thread a generator of its own: what it draws does not depend on what others draw meanwhile."""
    _own.generator = own
    try:
        yield
    finally:
        _own.generator = None
