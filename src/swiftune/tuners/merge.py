"""An adapter's update added to the weights of its base: W + s B A, in float32, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from swiftune.errors import AdapterError
from swiftune.runtime.console import notice

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@torch.no_grad()
def merge(model: PeftModel) -> PreTrainedModel:
    """Merges the active adapter into its base, in place, layer by layer, and returns the base.

    What an update is, each kind of layer knows (PEFT's ``merge``: LoRA, DoRA, embeddings, biases); modules that were
    trained whole replace those of the base. Every weight keeps its dtype.

    Raises:
        AdapterError: an update is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    _part_ends(model.get_base_model())
    for layer in list(model.modules()):
        if isinstance(layer, BaseTunerLayer):
            try:
                with _in_float32(layer.get_base_layer()):
                    layer.merge(safe_merge=True)
            except ValueError as error:
                raise AdapterError(f"The adapter cannot be merged: {error}.", "Take another checkpoint.") from error
    merged: PreTrainedModel = model.unload()
    _tie_ends(merged)
    return merged


@contextmanager
def _in_float32(layer: torch.nn.Module) -> Iterator[None]:
    dtypes = {name: parameter.dtype for name, parameter in layer.named_parameters(recurse=False)}
    layer.float()
    try:
        yield
    finally:
        for name, dtype in dtypes.items():
            parameter = layer.get_parameter(name)
            parameter.data = parameter.data.to(dtype)


def _part_ends(model: PreTrainedModel) -> None:
    """Gives embeddings and output head weights of their own where they share them and one has an update."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(end, BaseTunerLayer):
            layer = end.get_base_layer()
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def _tie_ends(model: PreTrainedModel) -> None:
    """Has them share weights again where these are equal; else the model's configuration says that they do not."""
    config = model.config.get_text_config()
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if not getattr(config, "tie_word_embeddings", False) or last is None:
        return
    if torch.equal(first.weight, last.weight):
        last.weight = first.weight
        return
    notice("Embeddings and output head are not the same any more: both are saved (tie_word_embeddings: false).")
    model.config.tie_word_embeddings = config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
