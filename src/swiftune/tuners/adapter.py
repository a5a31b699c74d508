"""Adapter folders in PEFT's format: finding them, checking them, putting them onto their base."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftune.errors import AdapterError
from swiftune.runtime.console import hushed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SUM = "weighted_sum"
"""Name of the sum of several adapters on a model."""
RENAMED = "`is_gradient_checkpointing` is deprecated"
"""PEFT 0.21 asks a model for it by the name that it had before Transformers 5.23."""
TIED = "Model has `tie_word_embeddings=True`"
"""PEFT warns of what comes of merging; ``merge`` sees to that."""


def read_config(path: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a whole adapter folder.

    Raises:
        AdapterError: the folder is missing, is a model, or is not whole.
    """
    if not path.is_dir():
        raise AdapterError(f"--adapters {path}: there is no such folder.", "It is a checkpoint-... folder of a run.")
    if not (path / CONFIG).exists():
        if (path / "config.json").exists():
            raise AdapterError(f"--adapters {path} is a whole model, not an adapter.", f"Use --model {path}.")
        raise AdapterError(f"--adapters {path} has no {CONFIG}.", "It is a checkpoint-... folder of a run.")
    if not (path / WEIGHTS).exists():
        raise AdapterError(f"--adapters {path} has no {WEIGHTS}.", "The folder is not whole; take another checkpoint.")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path / CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise AdapterError(f"{path / CONFIG} names no peft_type.", "It is not a PEFT adapter.")
    return config


def load_adapter(model: PreTrainedModel, path: Path, *, trainable: bool = False) -> PeftModel:
    """Puts the adapter in ``path`` onto ``model``.

    Raises:
        AdapterError: the folder is no adapter, or one that was made for another base.
    """
    from peft import PeftModel

    def put() -> PeftModel:
        _grow_vocabulary(model, path)
        return PeftModel.from_pretrained(model, str(path), is_trainable=trainable)

    wrapped = _checked(put, path, "default")
    return in_float32(wrapped) if trainable else wrapped


def add_adapter(model: PreTrainedModel | PeftModel, path: Path, name: str) -> PeftModel:
    """Puts the adapter in ``path`` beside those that ``model`` has, under ``name``.

    Raises:
        AdapterError: see ``load_adapter``.
    """
    from peft import PeftModel

    def put() -> PeftModel:
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(path), adapter_name=name)
        model.load_adapter(str(path), adapter_name=name)
        return model

    return _checked(put, path, name)


def load_adapters(
    model: PreTrainedModel, paths: Sequence[Path], weights: Sequence[float]
) -> PreTrainedModel | PeftModel:
    """``model`` with no adapter, one, or the weighted sum of several; no weights: each counts once."""
    if len(paths) > 1 or any(weight != 1 for weight in weights):
        return load_weighted_sum(model, paths, weights)
    return load_adapter(model, paths[0]) if paths else model


def in_float32(model: PeftModel) -> PeftModel:
    """Holds all that is trained in float32, in place: in 16 bits small updates would be rounded away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def load_weighted_sum(model: PreTrainedModel, paths: Sequence[Path], weights: Sequence[float]) -> PeftModel:
    """Puts the weighted sum of several adapters' updates onto ``model``: w1 B1 A1 + w2 B2 A2 + ..., exactly.

    The factors are laid side by side, so the ranks may differ, and a layer may be in some of the adapters only.

    Raises:
        AdapterError: see ``load_adapter``; or an adapter is more than LoRA, so that it is no sum of products.
    """
    for path in paths:
        config = read_config(path)
        more = [config.get(key) for key in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices")]
        if config["peft_type"] != "LORA" or any(more) or config.get("bias", "none") != "none":
            raise AdapterError(f"{path} is not plain LoRA; it cannot be part of a weighted sum.", "Use it alone.")
    wrapped = load_adapter(model, paths[0])
    names = ["default"]
    for path in paths[1:]:
        name = f"adapter_{len(names) + 1}"
        add_adapter(wrapped, path, name)
        names.append(name)
    with torch.no_grad():
        _lay_side_by_side(wrapped, names, weights)
    wrapped.set_adapter(SUM)
    return wrapped.eval()


def _lay_side_by_side(wrapped: PeftModel, parts: Sequence[str], weights: Sequence[float]) -> None:
    """Makes the sum, in all layers that are in one of its parts, and fills its factors in float32.

    PEFT's own ``add_weighted_adapter`` has them in the base's dtype, and placed by the settings of the first adapter.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    tuner: Any = wrapped.base_model
    layers = {name: layer for name, layer in tuner.model.named_modules() if isinstance(layer, LoraLayer)}
    rank = max(sum(layer.r.values()) for layer in layers.values())
    wrapped.peft_config[SUM] = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), inference_mode=True)
    tuner.inject_adapter(tuner.model, SUM)
    for layer in layers.values():
        own = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part in layer.scaling]
        first, second = _factors(layer, SUM)
        pairs = [(*_factors(layer, part), weight * layer.scaling[part]) for part, weight in own]
        for whole, filled in (
            (first, torch.cat([a.float() * scale for a, _, scale in pairs], 0)),
            (second, torch.cat([b.float() for _, b, _ in pairs], 1)),
        ):
            whole.data = torch.zeros_like(whole, dtype=torch.float32)
            whole.data[: filled.shape[0], : filled.shape[1]] = filled


def _factors(layer: Any, name: str) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    if name in layer.lora_A:
        return layer.lora_A[name].weight, layer.lora_B[name].weight
    return layer.lora_embedding_A[name], layer.lora_embedding_B[name]


def _checked(put: Callable[[], PeftModel], path: Path, name: str) -> PeftModel:
    """Calls ``put``, which loads ``path`` under ``name``, and makes sure that all of it found its place."""
    from safetensors import SafetensorError, safe_open

    read_config(path)
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path / WEIGHTS} is truncated or no safetensors file.", "Take another checkpoint."
        ) from error
    try:
        with (
            hushed(RENAMED),
            hushed(TIED, UserWarning),
            hushed("Found missing adapter keys", UserWarning),
        ):  # _check_fit says which
            wrapped = put()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"The adapter in {path} does not fit this base model: {_reason(error)}",
            "Name the base it was trained on with --model.",
        ) from error
    _check_fit(wrapped, shapes, path, name)
    return wrapped


def _grow_vocabulary(model: PreTrainedModel, path: Path) -> None:
    """Gives the model as many rows of embeddings as the adapter has, where that brings whole ones of its own."""
    from safetensors import safe_open

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = tuple(f".{name}.weight" for name, module in model.named_modules() if module in ends)
    with safe_open(path / WEIGHTS, framework="pt") as file:
        rows = {file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith(names)}  # noqa: SIM118
    if len(rows) == 1 and min(rows) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _check_fit(wrapped: PeftModel, shapes: dict[str, tuple[int, ...]], path: Path, name: str) -> None:
    """PEFT skips tensors that the base has no place for, and leaves untouched those it lacks; neither goes unsaid."""
    from peft import get_peft_model_state_dict

    for with_embeddings in (True, False):  # PEFT itself saves those, too, where they are adapted or have grown
        state = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=with_embeddings)
        expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
        odd = sorted(set(shapes) ^ set(expected)) or sorted(n for n in shapes if shapes[n] != expected[n])
        if not odd:
            break
    else:
        raise AdapterError(
            f"The adapter in {path} was made for another base model: {odd[0]} fits nothing here.",
            "Name the base it was trained on with --model.",
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)
