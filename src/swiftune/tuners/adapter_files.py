"""What is done with adapters without a model: finding their rank, writing the weighted sum of several as one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.errors import AdapterError
from swiftune.tuners.adapter import CONFIG, WEIGHTS, read_config

if TYPE_CHECKING:
    import torch

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways of starting LoRA by which PEFT changes the base's weights when it loads the adapter."""
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class _Layers:
    """An adapter's pairs of matrices: ``scaling * B @ A`` is what it adds to the weight of a layer."""

    config: dict[str, Any]
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Layer -> A (rank x inputs) and B (outputs x rank)."""

    def scaling(self, layer: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""
        name = layer.removeprefix("base_model.model.")
        alphas: dict[str, float] = self.config.get("alpha_pattern") or {}
        own = (alpha for pattern, alpha in alphas.items() if re.match(rf"(.*\.)?({pattern})$", name))
        alpha = next(own, self.config["lora_alpha"])
        rank = self.pairs[layer][0].shape[0]
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def largest_rank(path: Path) -> int:
    """The rank of an adapter; where its layers differ, the largest."""
    config = read_config(path)
    try:
        return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{path / CONFIG} names no rank.", "It is not a LoRA adapter.") from error


def more_than_lora(config: dict[str, Any]) -> str | None:
    """What makes an adapter more than a sum of products B A, if anything does."""
    if config["peft_type"] != "LORA":
        return f"{config['peft_type']}, not LoRA"
    if config.get("use_dora"):
        return "DoRA"
    return next(
        (name for name in ("modules_to_save", "trainable_token_indices", "lora_bias") if config.get(name)), None
    )


def changes_base(config: dict[str, Any]) -> str | None:
    """What of an adapter changes weights of its base for good when PEFT loads it, if anything does."""
    if config.get("bias", "none") != "none":
        return "LoRA with trained biases"
    start = str(config.get("init_lora_weights"))
    return f"LoRA that starts from {start}" if start.lower().startswith(_CHANGES_BASE) else None


def write_weighted_sum(paths: Sequence[Path], weights: Sequence[float], target: Path) -> Path:
    """Writes w1 B1 A1 + w2 B2 A2 + ... as one adapter folder in PEFT's format, exactly.

    The factors are laid side by side, and filled up with zeros where a layer is in some of the adapters only, so that
    all layers have the same rank: the sum of the adapters' ranks. Weights and scalings go into A; all is in float32.

    Raises:
        AdapterError: an adapter is not whole, or more than LoRA.
    """
    import torch
    from safetensors.torch import save_file

    adapters = [_layers(path) for path in paths]
    names = sorted({layer for adapter in adapters for layer in adapter.pairs})
    rank = max(sum(a.pairs[name][0].shape[0] for a in adapters if name in a.pairs) for name in names)
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        parts = [
            (a.pairs[name], w * a.scaling(name)) for a, w in zip(adapters, weights, strict=True) if name in a.pairs
        ]
        try:
            down_RI = torch.cat([scale * down.float() for (down, _), scale in parts])
            up_OR = torch.cat([up.float() for (_, up), _ in parts], dim=1)
        except RuntimeError as error:
            raise AdapterError(
                f"The adapters {', '.join(map(str, paths))} were made for different base models."
            ) from error
        missing = rank - down_RI.shape[0]
        tensors[name + _A] = torch.nn.functional.pad(down_RI, (0, 0, 0, missing)).contiguous()
        tensors[name + _B] = torch.nn.functional.pad(up_OR, (0, missing)).contiguous()
    config = adapters[0].config | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "target_modules": [name.removeprefix("base_model.model.") for name in names],
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return target


def _layers(path: Path) -> _Layers:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(path)
    if more := more_than_lora(config):
        raise AdapterError(f"{path} is {more}; it cannot be part of a weighted sum.", "Use it alone.")
    try:
        tensors = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path / WEIGHTS} is truncated or no safetensors file.", "Take another checkpoint."
        ) from error
    names = sorted({name.removesuffix(_A) for name in tensors if name.endswith(_A)})
    odd = sorted(tensors.keys() - {name + end for name in names for end in (_A, _B)})
    if odd or not names or any(name + _B not in tensors for name in names):
        raise AdapterError(f"{path} has {odd[0] if odd else 'unpaired matrices'}; it cannot be part of a weighted sum.")
    return _Layers(config, {name: (tensors[name + _A], tensors[name + _B]) for name in names})
