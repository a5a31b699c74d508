"""Which adapters vLLM can answer with as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swiftune.errors import AdapterError
from swiftune.tuners.adapter import WEIGHTS, read_config
from swiftune.tuners.adapter_files import changes_base, largest_rank, more_than_lora

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` takes in vLLM 0.32."""


@dataclass(frozen=True)
class Mix:
    """The weighted sum of several adapters' updates."""

    paths: Sequence[Path]
    weights: Sequence[float]


def check_adapter(path: Path, model: Path, *, trust_remote_code: bool = False) -> int:
    """Makes sure that vLLM can use the adapter in ``path`` on the model in ``model``.

    Returns:
        Its rank.

    Raises:
        AdapterError: it is no adapter, is one that vLLM cannot take, or was made for another model.
    """
    config = read_config(path)
    cure = f"Merge it into its model first: swift export --adapters {path} --merge_lora true"
    if more := more_than_lora(config) or changes_base(config):
        raise AdapterError(f"vLLM cannot take the adapter in {path}: it is {more}.", cure)
    rank = largest_rank(path)
    if rank > RANKS[-1]:
        raise AdapterError(f"vLLM cannot take the adapter in {path}: its rank {rank} is above {RANKS[-1]}.", cure)
    _check_fit(path, model, trust_remote_code)
    return rank


def rank_allowed(rank: int) -> int:
    """The least value of ``--max-lora-rank`` that is enough for adapters of this rank.

    >>> rank_allowed(12), rank_allowed(300)
    (16, 320)
    """
    return next(allowed for allowed in RANKS if allowed >= min(rank, RANKS[-1]))


def lora_words(rank: int, count: int) -> list[str]:
    """What ``vllm serve`` is told about so many adapters of ranks up to this; nothing where there are none."""
    if not rank:
        return []
    # That many different adapters can be in one step. Each takes memory, wanted or not.
    at_once = min(max(count, 1), 8)
    return ["--enable-lora", "--max-lora-rank", str(rank_allowed(rank)), "--max-loras", str(at_once)]


def _check_fit(path: Path, model: Path, trusted: bool) -> None:
    """Compares the adapter's shapes with the layers of the model, of which only the configuration is read: vLLM itself
    skips what it has no place for."""
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=trusted)
    with torch.device("meta"):
        hollow = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    layers = {name: tuple(module.weight.shape) for name, module in hollow.named_modules() if hasattr(module, "weight")}
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path / WEIGHTS} is truncated or no safetensors file.", "Take another checkpoint."
        ) from error
    for key, shape in shapes.items():
        layer, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        own = layers.get(layer, ())
        if (shape[-1:] != own[-1:] and kind == "A.weight") or (shape[:1] != own[:1] and kind == "B.weight"):
            raise AdapterError(
                f"The adapter in {path} was made for another base model: {key} fits nothing here.",
                "Name the base it was trained on with --model.",
            )
