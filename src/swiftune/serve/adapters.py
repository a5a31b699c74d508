"""Which folders a client may have loaded as an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swiftune.errors import AdapterError
from swiftune.serve.errors import ApiError, wrong
from swiftune.tuners.adapter import CONFIG, WEIGHTS, read_config

_LARGEST_CONFIG = 1 << 20
_PLAIN = (None, True, False, "gaussian", "orthogonal")
"""What ``init_lora_weights`` may be: the others compute on the base's weights, and change them."""
_FORBIDDEN = ("megatron_config", "layer_replication", "auto_mapping")
"""The first names a module to import, the second makes the base larger, the third names classes."""


def allowed_folder(path: str, allowed: Sequence[Path], max_rank: int) -> tuple[Path, dict[str, Any]]:
    """The folder of an adapter, links followed, and what its args.json says.

    Args:
        path: what the client sent: absolute, or below one of ``allowed``.

    Raises:
        ApiError: 403 where it lies elsewhere (whether it exists there is not said).
        AdapterError: it holds no adapter that may be loaded.
    """
    if not allowed:
        raise ApiError(403, "This server lets no adapters be loaded: it was started without --adapter_dirs.")
    roots = [root.resolve() for root in allowed]
    folder = _inside([root / path for root in roots] if "\0" not in path else [], roots)
    if folder is None or not folder.is_dir():
        raise ApiError(403, "lora_path is no folder below one of this server's --adapter_dirs.", param="lora_path")
    for name in (CONFIG, WEIGHTS, "tokenizer.json"):  # a link to somewhere else is no part of the folder
        if (folder / name).exists() and _inside([folder / name], roots) is None:
            raise ApiError(403, f"{name} is a link that leads out of --adapter_dirs.", param="lora_path")
    if (folder / CONFIG).exists() and (folder / CONFIG).stat().st_size > _LARGEST_CONFIG:
        raise wrong(f"{CONFIG} is too large.", "lora_path")
    _check(read_config(folder), max_rank)
    return folder, _recorded(folder, roots)


def _inside(paths: Sequence[Path], roots: Sequence[Path]) -> Path | None:
    """The first of the paths that, links followed, exists below one of the roots."""
    for path in paths:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            continue
        if any(real.is_relative_to(root) for root in roots):
            return real
    return None


def _check(config: dict[str, Any], max_rank: int) -> None:
    """Nothing in the file may have PEFT do more than put matrices beside the base's."""
    if config["peft_type"] != "LORA":
        raise AdapterError("It is no LoRA adapter.")
    odd = next((name for name in _FORBIDDEN if config.get(name)), None)
    if config.get("init_lora_weights") not in _PLAIN:
        odd = "init_lora_weights"
    if odd is not None:
        raise AdapterError(f"{CONFIG} has {odd}, which no client may use.")
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and 0 < rank <= max_rank for rank in ranks):
        raise AdapterError(f"{CONFIG} asks for a rank above this server's --max_lora_rank {max_rank}.")


def _recorded(folder: Path, roots: Sequence[Path]) -> dict[str, Any]:
    file = _inside([folder / "args.json"], roots)
    if file is None or file.stat().st_size > _LARGEST_CONFIG:
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
