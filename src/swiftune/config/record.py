"""``args.json``: the arguments of a run as they were in effect, from which it can be run again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

from swiftune.config.declare import Arguments
from swiftune.config.given import read_file
from swiftune.config.parse import build_recorded
from swiftune.errors import OutputError
from swiftune.runtime.console import notice

A = TypeVar("A", bound=Arguments)


def save(args: Arguments, path: Path) -> None:
    """Writes all arguments, defaults included, in one step: the file is there whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(args.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def load(path: Path, command: type[A]) -> A:
    """Reads arguments back; those that ``command`` (or group of arguments) does not have are passed over.

    A file may come from a newer version, or from ms-swift: names that no command here knows are told in one notice.

    Raises:
        ArgumentsError: it is no such file, or a value in it cannot be used.
    """
    args, unknown = build_recorded(command, read_file(path))
    if unknown:
        names = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        notice(f"{path} has arguments that this version does not know and passes over: {names}.")
    return args
