"""What a run's checkpoints will need on the disk, against what is free there."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Protocol

import torch

from swiftune.config import SftArguments
from swiftune.runtime.console import say, warn
from swiftune.runtime.units import size_text
from swiftune.train.memory import STATES


class Steps(Protocol):
    """A feed, as far as it matters here."""

    steps: int

    def epoch(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        ...


def checkpoint_bytes(model: torch.nn.Module, args: SftArguments, dtype: torch.dtype) -> int:
    """Bytes of one checkpoint: weights, and what training goes on from.

    Args:
        dtype: in which a fully tuned model is saved.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    values = sum(p.numel() for p in trained)
    own = sum(p.nbytes for p in trained)
    full = args.train_type == "full"
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize if full else own
    if args.save_only_model:
        return weights
    beside = own if full and dtype != torch.float32 else 0  # the float32 weights
    return weights + beside + STATES.get(args.optim, 0) * 4 * values


def checkpoints_at_once(args: SftArguments, feed: Steps) -> int:
    """The most checkpoints that are on the disk at once: those that are kept, and the one being written."""
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "epoch":
        saves = math.ceil(feed.epoch(feed.steps))
    else:
        saves = math.ceil(feed.steps / args.save_steps)
    if args.save_total_limit is None:
        return saves
    best = args.eval_strategy != "no"  # is kept beside the latest
    return min(saves, max(args.save_total_limit, 1 + best) + 1)


def say_what_is_needed(run: Path, args: SftArguments, model: torch.nn.Module, dtype: torch.dtype, feed: Steps) -> None:
    """Tells, before the first step, what the checkpoints will take; warns where the disk has less."""
    each, count, free = (
        checkpoint_bytes(model, args, dtype),
        checkpoints_at_once(args, feed),
        shutil.disk_usage(run).free,
    )
    if not count:
        return
    together = f"{size_text(each)} each, {size_text(each * count)} for the {count} on the disk at once"
    figures = f"{together}; {size_text(free)} are free"
    if each * count <= free:
        say(f"Checkpoints: about {figures}.", style="dim")
        return
    cure = "Make room, set a lower --save_total_limit or --save_only_model true, or name another --output_dir."
    warn(f"The checkpoints will not fit on the disk of {run}: about {figures}. {cure}")
