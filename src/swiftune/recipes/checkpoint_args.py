"""What a checkpoint knows of the run that made it: its model, template, system prompt and dtype."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from swiftune import hub
from swiftune.config import AnswerArguments, InferArguments, ModelArguments
from swiftune.config.values import RECORDED, split_name
from swiftune.errors import AdapterError, NotFoundError
from swiftune.runtime.console import warn

_TAKEN = ("model", "model_revision", "use_hf", "torch_dtype", "template", "system", "enable_thinking")
"""Not ``trust_remote_code``: a folder must not decide that its own code may run."""
_DATA = (
    *("dataset", "val_dataset", "split_dataset_ratio", "data_seed", "dataset_shuffle"),
    *("columns", "model_name", "model_author"),
)
"""Taken with ``--load_data_args true``."""
_ID = re.compile(r"[\w.-]+/[\w.-]+")


A = TypeVar("A", bound=AnswerArguments)


@dataclass(frozen=True)
class Resolved(Generic[A]):
    """The arguments of a command that answers with the blanks filled in."""

    args: A
    """``model`` is the base's id or folder, or a fully tuned checkpoint's folder."""
    adapters: list[Path]
    home: Path | None
    """The checkpoint's folder, adapter or not, where results may be put; ``None`` where no checkpoint is used."""


def resolve(args: A) -> Resolved[A]:
    """Finds the checkpoint that ``--adapters`` or ``--model`` names and takes from its args.json what was not given.

    Raises:
        AdapterError: the adapter's base model is not known, or is not where it was.
    """
    if args.adapters:
        adapters = [find_adapter(named(adapter)[1], args) for adapter in args.adapters]
        filled = filled_from(args, adapters[0])
        for adapter in adapters:
            filled = with_base(filled, adapter)
        return Resolved(filled, adapters, adapters[0])
    if args.model and os.path.isdir(args.model):
        folder = checkpoint_in(Path(args.model))
        args = filled_from(args.model_copy(update={"model": str(folder)}), folder)
        return Resolved(args, [], folder if (folder / "args.json").exists() else None)
    return Resolved(args, [], None)


def checkpoint_in(folder: Path) -> Path:
    """``folder``, or if it is a run's folder its best checkpoint, or its last where none is marked as best."""
    if any((folder / name).exists() for name in ("adapter_config.json", "config.json")):
        return folder
    if (folder / "checkpoint-best").exists():
        return (folder / "checkpoint-best").resolve()
    steps = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    return steps[max(steps)] if steps else folder


def find_adapter(name: str, args: ModelArguments) -> Path:
    """The folder of an adapter: a checkpoint, a run's best or last checkpoint, or one from a hub."""
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return checkpoint_in(path)
    if os.path.exists(path) or not _ID.fullmatch(name) or os.path.isdir(path.parent):
        return path  # whoever opens it says what is wrong with it
    try:
        return hub.find_model(name, use_hf=args.use_hf)
    except NotFoundError as error:
        raise NotFoundError(f"--adapters {name}: {error.what}", error.cure) from error


def named(adapter: str) -> tuple[str | None, str]:
    """An adapter's name, if it is given one, and its id or path. What exists as it stands is a path, = or not."""
    return (None, adapter) if os.path.exists(os.path.expanduser(adapter)) else split_name(adapter)


def filled_from(args: A, folder: Path) -> A:
    """``args`` with what args.json says where the command line said nothing."""
    recorded = _read(folder / "args.json")
    names = _TAKEN + (_DATA if isinstance(args, InferArguments) and args.load_data_args else ())
    given = args.model_dump(include=args.model_fields_set)
    for name in names:
        if name in given or recorded.get(name) is None:
            continue
        try:
            type(args).model_validate({name: recorded[name]}, context=RECORDED)
        except ValidationError:
            warn(f"{folder / 'args.json'}: {name} {recorded[name]!r} means nothing here and is not used.")
            continue
        given[name] = recorded[name]
    return type(args).model_validate(given, context=RECORDED)


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} cannot be read: {error}.", "Take another checkpoint.") from error
    return values if isinstance(values, dict) else {}


def with_base(args: A, adapter: Path) -> A:
    """``args`` with the base model that the adapter names, and a word where the user names another one."""
    from swiftune.tuners.adapter import read_config

    trained_on = str(read_config(adapter).get("base_model_name_or_path") or "")
    if args.model is None and trained_on:
        args = args.model_copy(update={"model": trained_on})
    if args.model is None:
        raise AdapterError(f"{adapter} does not say which model it was made for.", "Name it with --model.")
    if Path(args.model).is_absolute() and not Path(args.model).exists():
        raise AdapterError(
            f"The adapter {adapter} was made for the model in {args.model}, which is not there any more.",
            "Name the model with --model.",
        )
    if trained_on and _name(trained_on) != _name(args.model):
        warn(f"The adapter {adapter} was made for {trained_on}, and is put onto {args.model}.")
    return args


def _name(model: str) -> str:
    """What is the same of a model's id and of the folders that hubs put it into.

    >>> _name("Qwen/Qwen2.5-7B") == _name("~/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B")
    True
    >>> _name("Qwen/Qwen2.5-7B") == _name("/cache/hub/models--Qwen--Qwen2.5-7B/snapshots/d149729398750b98c0af14eb82c7")
    True
    """
    if cached := re.search(r"models--(?:.+--)?([^/]+)/snapshots/", model):
        return cached[1].lower()
    return Path(model.rstrip("/")).name.replace("___", ".").lower()
