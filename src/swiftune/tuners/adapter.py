"""Adapter folders in PEFT's format: finding them, checking them, putting them onto their base."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.errors import AdapterError
from swiftune.runtime.console import hushed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RENAMED = "`is_gradient_checkpointing` is deprecated"
"""PEFT 0.21 asks a model for it by the name that it had before Transformers 5.23."""


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
        if config["peft_type"] != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
            raise AdapterError(f"{path} is not plain LoRA; it cannot be part of a weighted sum.", "Use it alone.")
    wrapped = load_adapter(model, paths[0])
    names = ["default"]
    for path in paths[1:]:
        name = f"adapter_{len(names) + 1}"
        add_adapter(wrapped, path, name)
        names.append(name)
    wrapped.add_weighted_adapter(names, list(weights), "weighted_sum", combination_type="cat")
    wrapped.set_adapter("weighted_sum")
    return wrapped.eval()


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
        with hushed(RENAMED), hushed("Found missing adapter keys", UserWarning):  # _check_fit says which
            wrapped = put()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"The adapter in {path} does not fit this base model: {_reason(error)}",
            "Name the base it was trained on with --model.",
        ) from error
    _check_fit(wrapped, shapes, path, name)
    return wrapped


def _check_fit(wrapped: PeftModel, shapes: dict[str, tuple[int, ...]], path: Path, name: str) -> None:
    """PEFT skips tensors that the base has no place for, and leaves untouched those it lacks; neither goes unsaid."""
    from peft import get_peft_model_state_dict

    expected = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(wrapped, adapter_name=name).items()}
    odd = sorted(set(shapes) ^ set(expected)) or sorted(n for n in shapes if shapes[n] != expected[n])
    if odd:
        raise AdapterError(
            f"The adapter in {path} was made for another base model: {odd[0]} fits nothing here.",
            "Name the base it was trained on with --model.",
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)
