"""How many tokens fit into a micro-batch, and whether activations must be computed again to make them fit.

Shapes: T tokens, L layers, D hidden size, F intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from swiftune.losses.cross_entropy import BLOCK

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
    config: Any,
    *,
    free: int,
    device: str,
    width: int,
    longest: int,
    asked: int | None,
    checkpointing: bool | Literal["auto"],
) -> MemoryPlan:
    """Chooses the token budget and whether to checkpoint activations.

    Args:
        config: the model's configuration.
        free: bytes free on the device for this process, weights and optimizer already counted.
        width: bytes of a value (2 in 16 bits, 4 in float32).
        longest: tokens of the longest row.
        asked: ``--max_tokens_per_batch``.
        checkpointing: ``auto``, or what the user wants.
    """
    room = free * MARGIN
    budget = asked or max(TOKENS.get(device, 2048), longest)
    again = checkpointing is True
    if checkpointing == "auto":
        again = activation_bytes(config, budget, width, checkpointing=False) > room
    while not asked and budget > longest and activation_bytes(config, budget, width, checkpointing=again) > room:
        budget = max(longest, budget // 2)
    return MemoryPlan(budget, again, activation_bytes(config, budget, width, checkpointing=again))


def activation_bytes(config: Any, tokens: int, width: int, *, checkpointing: bool) -> int:
    """Bytes of activations kept for the backward pass of ``tokens`` tokens, and of one block of logits.

    A layer keeps about 34 values of width D (norms, q, k, v, attention, residuals, dropout's and adapters' inputs) and
    10 of width F: an estimate on the safe side, which a measured peak of SmolLM2-135M with LoRA stays under. With
    checkpointing each layer keeps its input, and one layer at a time all of it. Logits are in float32, three times.
    """
    text = config.get_text_config()
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    wide = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    one_layer = tokens * width * (34 * hidden + 10 * wide)
    kept = one_layer + layers * tokens * width * hidden if checkpointing else layers * one_layer
    return kept + BLOCK * int(text.vocab_size) * (width + 3 * 4)
