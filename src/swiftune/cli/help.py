"""What ``--help`` prints: made from the declarations, fitted to the width of the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swiftune.config.declare import Argument, Arguments

_COLUMN = 34
"""Where the sentences begin."""


def overview(commands: Mapping[str, str]) -> str:
    """The page of ``swift --help``."""
    lines = [
        "usage: swift COMMAND [run.yaml] [--flag VALUE ...]",
        "",
        "Fine-tuning of large language models, from an idea to a served model.",
        "",
        *(f"  {_bold(name.ljust(8))}  {summary}" for name, summary in commands.items()),
        "",
        "swift COMMAND --help shows every flag of a command. `swiftune` is the same program.",
    ]
    return "\n".join(lines)


def page(usage: str, summary: str, command: type[Arguments]) -> str:
    """The page of ``swift COMMAND --help``: all flags under their headings."""
    from swiftune.config.declare import groups_of

    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    lines = [*textwrap.wrap(f"usage: {usage}", width, subsequent_indent=" " * 11), "", _sentence(summary)]
    groups = groups_of(command)
    if groups:
        advice = (
            "Booleans: true or false (a bare flag is true). Lists: --dataset a b c. JSON in quotes. The same names are "
            "the keys of run.yaml; the command line wins over it."
        )
        lines += ["", *textwrap.wrap(advice, width)]
    for (title, remark), arguments in groups.items():
        head = textwrap.wrap(f"{title}: {remark}", width)
        lines += ["", _bold(title) + head[0][len(title) :], *head[1:]]
        for argument in arguments:
            lines += _entry(argument, width)
    return "\n".join(lines)


def _entry(argument: Argument, width: int) -> list[str]:
    flag = f"  --{argument.name}"
    # A long list of choices reads better as a sentence than behind the flag.
    long = len(flag) + len(argument.kind.metavar) > 60
    value = argument.kind.metavar if not long else "NAME"
    sentence = argument.help + (f" One of {argument.kind.expected}." if long else "")
    indent = " " * _COLUMN
    text = textwrap.wrap(
        f"{sentence} (default: {argument.default})",
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    head = f"{_bold(flag)} {value}"
    used = len(flag) + 1 + len(value)
    if used + 2 > _COLUMN:
        return [head, *text]
    return [head + " " * (_COLUMN - used) + text[0][_COLUMN:], *text[1:]]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text
