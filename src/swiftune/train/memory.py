"""How many tokens fit into a micro-batch, and whether activations must be computed again to make them fit.

Shapes: T tokens, L layers, D hidden size, F intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

TOKENS = {"cpu": 2048, "cuda": 8192, "mps": 2048}
"""Micro-batches beyond this cost memory and gain nothing (measured on a CPU; conventional on a GPU, not measured)."""
MARGIN = 0.8
"""The share of the free memory that is planned with."""


@dataclass(frozen=True)
class MemoryPlan:
    """What was decided before the first step."""

    budget: int
    """Tokens in a micro-batch."""
    checkpointing: bool
    """Whether layers keep their inputs only and are computed again in the backward pass."""
    activations: int
    """Bytes that the activations of one micro-batch are estimated to take."""


def plan_memory(
    config: Any, *, free: int, device: str, longest: int, asked: int | None, checkpointing: bool | Literal["auto"]
) -> MemoryPlan:
    """Chooses the token budget and whether to checkpoint activations.

    Args:
        config: the model's configuration.
        free: bytes free on the device, weights and optimizer already counted.
        longest: tokens of the longest row.
        asked: ``--max_tokens_per_batch``.
        checkpointing: ``auto``, or what the user wants.
    """
    budget = asked or max(TOKENS.get(device, 2048), longest)
    if checkpointing != "auto":
        again = checkpointing is True
        return MemoryPlan(budget, again, activation_bytes(config, budget, checkpointing=again))
    again = activation_bytes(config, budget, checkpointing=False) > free * MARGIN
    if again and not asked:
        while budget > longest and activation_bytes(config, budget, checkpointing=True) > free * MARGIN:
            budget = max(longest, budget // 2)
    return MemoryPlan(budget, again, activation_bytes(config, budget, checkpointing=again))


def activation_bytes(config: Any, tokens: int, *, checkpointing: bool) -> int:
    """Bytes of activations kept for the backward pass of ``tokens`` tokens in 16 bits.

    A layer keeps about 17 values of width D (norms, q, k, v, attention, residuals, adapters' inputs) and 5 of width F;
    the constant is fitted to measured peaks of SmolLM2-135M, LoRA on all linear layers. With checkpointing, each layer
    keeps its input, and one layer at a time all of it.
    """
    hidden = int(config.hidden_size)
    layers = int(config.num_hidden_layers)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    one_layer = tokens * 2 * (17 * hidden + 5 * wide) * 2
    return one_layer + layers * tokens * 2 * hidden if checkpointing else layers * one_layer
