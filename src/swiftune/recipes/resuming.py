"""Which checkpoint a run goes on from, whether it may, and the folder that the run is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.config import (
    FilterArguments,
    LengthArguments,
    OrderArguments,
    SftArguments,
    TrainArguments,
    TunerArguments,
    load,
    save,
)
from swiftune.errors import CheckpointError
from swiftune.runtime.console import warn

if TYPE_CHECKING:
    from accelerate import PartialState

_MATTER = ("seed", "data_seed", "torch_dtype", "columns", "system", "template", "model_name", "model_author")
"""Further arguments that change what training gives. Rows that differ are refused by their content."""
_HARMLESS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "ddp_backend",
    "ddp_timeout",
    "gradient_checkpointing",  # the way out where memory ran out
    "max_bad_steps",
)
"""What changes nothing, or is refused by itself: the number of rows in a step."""


def checkpoint_to_resume(args: SftArguments) -> Path | None:
    """The whole checkpoint that ``--resume_from_checkpoint`` means, every file of it read.

    Raises:
        CheckpointError: there is none, it is not whole, or arguments that matter have changed since.
        UsageError: a process is training in its run.
    """
    from swiftune.train import checkpoint, checkpoint_folder, run_folder

    asked = args.resume_from_checkpoint
    if asked is None:
        return None
    place = Path(args.output_dir if asked.lower() == "true" else asked)
    newest = asked.lower() == "true" or (os.path.isdir(place) and any(place.glob("checkpoint-*")))  # a run's folder
    folder = checkpoint_folder.newest(place) if newest else place
    if not args.resume_only_model:
        if newest:
            run_folder.refuse_alive(folder.parent)  # its newest checkpoint will soon be another
        else:
            checkpoint_folder.verify(folder)
        checkpoint.read_state(folder)
        _refuse_changes(args, folder)
    return folder.resolve()


def _refuse_changes(args: SftArguments, folder: Path) -> None:
    """Names the arguments that are others than those of the run that is gone on with, and matter."""
    then = load(folder / "args.json", SftArguments)
    groups = (TrainArguments, TunerArguments, LengthArguments, FilterArguments, OrderArguments)
    names = [name for group in groups for name in group.model_fields if name not in _HARMLESS]
    names += [name for name in _MATTER if name in SftArguments.model_fields]
    changed = [
        f"--{name} ({getattr(then, name)} then, {getattr(args, name)} now)"
        for name in names
        if getattr(then, name) != getattr(args, name)
    ]
    if _resolved(then.model) != _resolved(args.model):
        changed.insert(0, f"--model ({then.model} then, {args.model} now)")
    if not changed:
        return
    said = f"since {folder} was written these have changed: {', '.join(changed)}."
    if not args.resume_anyway:
        raise CheckpointError(
            f"--resume_from_checkpoint: {said}", "Set them as they were, or go on with --resume_anyway true."
        )
    warn(f"{said[0].upper()}{said[1:]} The run will not end as it would have. An adapter stays what it is.")


@contextmanager
def folder_of_run(args: SftArguments, processes: PartialState, resume_from: Path | None) -> Iterator[Path]:
    """The run's folder, made and held by the main process, with the resolved arguments in it.

    A resumed run keeps its own. What killed runs have left half written beside it is deleted.
    """
    from accelerate.utils import broadcast_object_list

    from swiftune.train import run_folder

    made: list[Any] = [None]
    with ExitStack() as stack:
        if processes.is_main_process:
            if own := run_to_go_on_in(args, resume_from):
                stack.enter_context(run_folder.held(own))
            made[0] = own or stack.enter_context(run_folder.begun(Path(args.output_dir), add_version=args.add_version))
            _clean(Path(args.output_dir), made[0])
            fresh: dict[str, Any] = {"resume_from_checkpoint": None, "resume_only_model": False, "resume_anyway": False}
            resolved = args.model_copy(update=fresh | {"model": _resolved(args.model)})
            save(resolved, made[0] / "args.json")
        if processes.num_processes > 1:
            broadcast_object_list(made)
        yield Path(made[0])


def _resolved(model: str | None) -> str | None:
    """A model's folder by its whole path; any other name as it is."""
    return str(Path(model).resolve()) if model and os.path.exists(model) else model


def _clean(output_dir: Path, own: Path) -> None:
    from swiftune.train import checkpoint_folder, run_folder

    for run in (own, output_dir, *output_dir.glob("v*-*")):
        if checkpoint_folder.leftovers(run) and (run.resolve() == own.resolve() or not run_folder.is_alive(run)):
            checkpoint_folder.clean(run)


def run_to_go_on_in(args: SftArguments, resume_from: Path | None) -> Path | None:
    """The interrupted run's folder, if it is in --output_dir and nothing in it is newer than the checkpoint."""
    from swiftune.train import checkpoint_folder

    output = Path(args.output_dir).resolve()
    if resume_from is None or args.resume_only_model or output not in (resume_from.parent, resume_from.parent.parent):
        return None
    return resume_from.parent if checkpoint_folder.is_newest(resume_from) else None
