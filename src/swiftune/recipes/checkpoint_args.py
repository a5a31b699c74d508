"""What a checkpoint knows of the run that made it: its model, template, system prompt and dtype."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from swiftune import hub
from swiftune.config import ModelArguments, QuantizeArguments
from swiftune.config.values import RECORDED, split_name
from swiftune.errors import AdapterError, ModelError, NotFoundError
from swiftune.runtime.console import warn

A = TypeVar("A", bound=ModelArguments)

_TAKEN = ("model", "model_revision", "use_hf", "template", "system", "enable_thinking")
"""Not ``trust_remote_code``: a folder must not decide that its own code may run."""
_HELD = ("torch_dtype", *QuantizeArguments.model_fields)
"""How the run held the model in memory."""
_DATA = (
    *("dataset", "val_dataset", "split_dataset_ratio", "data_seed", "dataset_shuffle"),
    *("columns", "model_name", "model_author"),
)
"""Taken with ``--load_data_args true``."""
_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Resolved(Generic[A]):
    """The arguments of a command that uses a checkpoint, with the blanks filled in."""

    args: A
    """``model`` is the base's id or folder, or a fully tuned checkpoint's folder."""
    adapters: list[Path]
    home: Path | None
    """The checkpoint's folder, adapter or not, where results may be put; ``None`` where no checkpoint is used."""


def resolve(args: A, *, as_held: bool = True) -> Resolved[A]:
    """Finds the checkpoint that ``--adapters`` or ``--model`` names and takes from its args.json what was not given.

    Args:
        as_held: take the dtype and quantization, too, in which the run held its model.

    Raises:
        AdapterError: the adapter's base model is not known, or is not where it was; or adapters have several.
    """
    names = _TAKEN + (_HELD if as_held else ()) + (_DATA if getattr(args, "load_data_args", False) else ())
    if args.adapters:
        adapters = [find_adapter(named(adapter)[1], args) for adapter in args.adapters]
        if args.model is None:
            _refuse_several_bases(adapters)
        filled = filled_from(args, adapters[0], names)
        for adapter in adapters:
            filled = with_base(filled, adapter)
        return Resolved(filled, adapters, adapters[0])
    if args.model and os.path.isdir(args.model):
        folder = checkpoint_in(Path(args.model))
        args = filled_from(args.model_copy(update={"model": str(folder)}), folder, names)
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


def _refuse_several_bases(adapters: Sequence[Path]) -> None:
    from swiftune.tuners.adapter import read_config

    bases = {adapter: str(read_config(adapter).get("base_model_name_or_path") or "") for adapter in adapters}
    different = {_name(base): adapter for adapter, base in bases.items() if base}
    if len(different) > 1:
        (one, first), (other, second) = list(different.items())[:2]
        raise AdapterError(
            f"--adapters {first} was made for {one}, {second} for {other}.",
            "Adapters are used together on the model that both were made for.",
        )


def filled_from(args: A, folder: Path, names: Sequence[str] = (*_TAKEN, *_HELD)) -> A:
    """``args`` with what args.json says where the command line said nothing."""
    recorded = read_recorded(folder)
    command = type(args)
    given = args.model_dump(include=args.model_fields_set)
    for name in names:
        if name not in command.model_fields or name in given or recorded.get(name) is None:
            continue
        try:
            command.model_validate({name: recorded[name]}, context=RECORDED)
        except ValidationError:
            warn(f"{folder / 'args.json'}: {name} {recorded[name]!r} means nothing here and is not used.")
            continue
        given[name] = recorded[name]
    return command.model_validate(given, context=RECORDED)


def read_recorded(folder: Path) -> dict[str, Any]:
    """The args.json of the run that made a checkpoint; empty where there is none."""
    file = folder / "args.json"
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
    if trained_on and _is_another(Path(trained_on), Path(args.model)):
        raise AdapterError(
            f"The adapter {adapter} was made for another base model: {trained_on}, whose weights are not those of "
            f"{args.model}.",
            f"Use it with --model {trained_on}.",
        )
    if trained_on and _name(trained_on) != _name(args.model):
        warn(f"The adapter {adapter} was made for {trained_on}, and is put onto {args.model}.")
    return args


def _is_another(trained_on: Path, model: Path) -> bool:
    """Whether both are folders here, and hold the weights of different models."""
    from swiftune.models.load import fingerprint

    if not (os.path.isdir(trained_on) and os.path.isdir(model)) or trained_on.resolve() == model.resolve():
        return False
    try:
        there, here = fingerprint(trained_on), fingerprint(model)
    except (ModelError, OSError, ValueError, LookupError, struct.error):  # whoever opens the model says what is wrong
        return False
    return bool(there and here) and there != here


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
