"""Random seeds."""

from __future__ import annotations


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
