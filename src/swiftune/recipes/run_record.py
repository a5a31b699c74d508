"""``run.json``: with args.json, enough to do a run again, or to say what has changed since."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune import __version__
from swiftune.config import SftArguments
from swiftune.recipes.training_data import TrainingData

if TYPE_CHECKING:
    from accelerate import Accelerator

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "pyarrow", "numpy")


def write(run: Path, args: SftArguments, data: TrainingData, accelerator: Accelerator, *, budget: int) -> None:
    """Writes versions, data hashes, seeds, hardware and token counts."""
    import torch

    device = accelerator.device
    record: dict[str, Any] = {
        "command": sys.argv,
        "versions": {"swiftune": __version__, "python": platform.python_version()} | versions(),
        "seed": args.seed,
        "data_seed": args.data_seed,
        "data": data.hashes,
        "rows": data.ledger.counts,
        "tokens": data.tokens,
        "rows_per_step": data.rows_per_step,
        "steps": data.feed.steps,
        "max_tokens_per_batch": budget,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
        },
    }
    (run / "run.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """The versions of what decides a result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
