"""How many tokens fit into a micro-batch, and how many layers must be computed again to make them fit.

What the backward pass needs is measured on a few tokens of the model itself, with its tuner and in its dtype: it grows
by the same number of bytes with each token (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from swiftune.losses.cross_entropy import block_bytes
from swiftune.models.blocked_attention import KEEP, kept_keys
from swiftune.train.pack import pack
from swiftune.types import Row

TOKENS = {"cpu": 2048, "cuda": 8192, "mps": 2048}
"""Micro-batches beyond this cost memory and gain nothing (measured on a CPU; conventional on a GPU, not measured)."""
STILL_FAST = 1 / 4
"""Of ``TOKENS``. A token costs as much in a micro-batch of this size (measured on a CPU: 3.2 ms with 256, 512 and 1,024
tokens), and a quarter more where activations are computed again: so micro-batches are made smaller first."""
MARGIN = 0.8
"""The share of the free memory that is planned with."""
STATES = {"adamw_torch": 2, "adamw_torch_fused": 2}
"""Values that an optimizer keeps for each trained one; the others keep rows and columns, or nothing."""
_PROBE = (32, 64)


@dataclass(frozen=True)
class Activations:
    """Bytes that are kept for the backward pass."""

    fixed: float
    """However many tokens there are: weights cast to another dtype, and one block of logits."""
    token: float
    """Of a token, with no layer computed again."""
    layers: int
    """How many can be computed again."""
    measure_layer: Callable[[], float]
    """Measures ``layer``; it is seldom needed."""

    @cached_property
    def layer(self) -> float:
        """Of a token in one layer; spared where that layer is computed again."""
        return self.measure_layer()

    def peak(self, tokens: int, again: int) -> int:
        """With ``again`` layers computed again; about a layer's worth more is in use while one is gone back through."""
        kept = self.token - again * self.layer if again else self.token
        return int(self.fixed + tokens * (kept + self.token / max(self.layers, 1)))


@dataclass(frozen=True)
class MemoryPlan:
    """What was decided before the first step."""

    budget: int
    """Tokens in a micro-batch."""
    again: int
    """Layers that keep their inputs only and are computed again in the backward pass."""
    activations: int
    """Bytes that the activations of the micro-batches that are computed at once will take."""
    lanes: int = 1
    """How many are."""


def plan_memory(
    activations: Activations,
    *,
    free: int,
    device: str,
    longest: int,
    asked: int | None,
    checkpointing: bool | Literal["auto"],
    lanes: int = 1,
) -> MemoryPlan:
    """Chooses the token budget, how many layers are computed again, and how many micro-batches are computed at once.

    Args:
        free: bytes free on the device for this process, weights and optimizer already counted.
        longest: tokens of the longest row.
        asked: ``--max_tokens_per_batch``.
        checkpointing: ``auto``, or what the user wants.
        lanes: as many micro-batches are computed at once, if there is room and none of their layers computed again;
            together they have as many tokens as one by itself would have.
    """
    if lanes > 1 and asked is None and checkpointing is not True:
        budget = max(TOKENS.get(device, 2048) // lanes, longest)
        together = lanes * activations.peak(budget, 0)
        if together <= free * MARGIN:
            return MemoryPlan(budget, 0, together, lanes)

    def fits(budget: int, again: int) -> bool:
        return activations.peak(budget, again) <= free * MARGIN

    def lowered(budget: int, least: int, again: int) -> int:
        while not asked and budget > least and not fits(budget, again):
            budget = max(least, budget // 2)
        return budget

    layers, most = activations.layers, TOKENS.get(device, 2048)
    again = layers if checkpointing is True else 0
    budget = lowered(asked or max(most, longest), max(longest, int(most * STILL_FAST)), again)
    if checkpointing == "auto":
        again = next((k for k in range(layers) if fits(budget, k)), layers)
    budget = lowered(budget, longest, again)
    return MemoryPlan(budget, again, activations.peak(budget, again))


def measure_activations(
    objective: Any, autocast: Callable[[], AbstractContextManager[Any]], width: int, longest: int
) -> Activations:
    """Runs a few tokens through the model forward, and counts what autograd keeps besides the weights.

    Args:
        objective: from a micro-batch to sums with a gradient, with the ``causal_lm`` that it trains.
        autocast: makes the context that training runs in.
        width: bytes of a value in the dtype that is computed in.
        longest: tokens of the longest row.
    """
    model = objective.causal_lm
    layers = len(checkpointable(model))
    few, more = _PROBE

    def probe(again: int) -> tuple[float, float]:
        """What is kept of a token, and besides."""
        compute_again(model, again)
        first, second = (_kept(objective, tokens, autocast) for tokens in _PROBE)
        compute_again(model, 0)
        token = (second - first) / (more - few)
        return token, max(0.0, second - more * token)

    token, weights = probe(0)
    config, device = model.config.get_text_config(), model.device.type
    # The one thing that grows with a row's length, too: on a CPU attention keeps its weights.
    weighed = config.num_attention_heads * width * kept_keys(min(longest, KEEP)) if device == "cpu" else 0.0
    return Activations(
        weights + block_bytes(config.vocab_size, device, width),
        token + layers * weighed,
        layers,
        lambda: (token - probe(layers)[0]) / layers + weighed,
    )


def _kept(objective: Any, tokens: int, autocast: Callable[[], AbstractContextManager[Any]]) -> int:
    """Bytes that autograd keeps for the backward pass of one row, besides parameters and buffers."""
    objective.train()
    model = objective.causal_lm
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids_T = np.arange(tokens, dtype=np.int32) % int(model.config.get_text_config().vocab_size)
    batch = pack([Row(ids_T, ids_T, (tokens,))], model.device)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.random.fork_rng(), autocast(), hooks:
        sums = objective(batch)
    del sums  # until here everything was alive, so no address came twice
    return sum(kept.values())


def checkpointable(model: torch.nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that Transformers can compute again, from the first to the last."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compute_again(model: torch.nn.Module, count: int) -> None:
    """Has the first ``count`` layers keep their inputs only.

    The first: by the time they are computed again, what the layers after them kept is gone.
    """
    for number, layer in enumerate(checkpointable(model)):
        layer.gradient_checkpointing = number < count
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def training_bytes(model: torch.nn.Module, optim: str, processes: int) -> int:
    """Bytes of the gradients, of what the optimizer keeps, and of DDP's copy of the gradients."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return trained * (1 + STATES.get(optim, 0) + (processes > 1))
