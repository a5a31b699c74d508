"""Writes the reference page of the command line: ``python -m swiftune.config.reference``."""

from __future__ import annotations

import sys
from pathlib import Path

from swiftune.config import compat
from swiftune.config.commands import COMMANDS
from swiftune.config.declare import Argument, groups_of

PAGE = Path("docs/reference/command-line.md")

_TOP = """\
# The command line

<!-- Written by `python -m swiftune.config.reference` from src/swiftune/config; change it there. -->

`swift COMMAND [run.yaml] [--flag VALUE ...]`

- Booleans are `true` or `false`; a bare flag is `true`. Lists are written `--dataset a b c`, JSON in quotes:
  `'{"a": "b"}'`. `--flag=value` and `--flag value` are the same, and so are `--flag_name` and `--flag-name`.
- Every flag is also a key of a YAML or JSON file: `swift sft run.yaml`, or `swift sft --config run.yaml`. What stands
  on the command line wins. Each run writes its arguments, defaults included, to `args.json`;
  `swift sft --config args.json` runs it again.
- `swift COMMAND --help` shows the flags of one command.
"""


def page() -> str:
    """The whole page, Markdown."""
    groups: dict[tuple[str, str], dict[str, dict[str, Argument]]] = {}
    for command, cls in COMMANDS.items():
        for title, arguments in groups_of(cls).items():
            for argument in arguments:
                groups.setdefault(title, {}).setdefault(argument.name, {})[command] = argument
    sections = [_TOP, *(_section(title, arguments) for title, arguments in groups.items()), _compatibility()]
    return "\n".join(sections)


def _section(title: tuple[str, str], arguments: dict[str, dict[str, Argument]]) -> str:
    lines = [f"## {title[0]}", "", f"{_sentence(title[1])} For {_commands(arguments)}.", ""]
    lines += ["| flag | value | default | |", "|---|---|---|---|"]
    for name, by_command in arguments.items():
        argument = next(iter(by_command.values()))
        cells = (f"`--{name}`", f"`{argument.kind.metavar}`", _defaults(by_command), _literal(argument.help))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _commands(arguments: dict[str, dict[str, Argument]]) -> str:
    names = dict.fromkeys(command for by_command in arguments.values() for command in by_command)
    return ", ".join(f"`swift {name}`" for name in names)


def _defaults(by_command: dict[str, Argument]) -> str:
    defaults: dict[str, list[str]] = {}
    for command, argument in by_command.items():
        defaults.setdefault(argument.default, []).append(command)
    if len(defaults) == 1:
        return next(iter(defaults))
    return "; ".join(f"{default} ({', '.join(commands)})" for default, commands in defaults.items())


def _literal(text: str) -> str:
    """Braces as they are: some page generators read ``{{`` as a template."""
    return text.replace("{{", "`{{").replace("}}", "}}`")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _compatibility() -> str:
    lines = ["## Other spellings", "", "Accepted, with one notice.", "", "| written | here |", "|---|---|"]
    lines += [f"| `--{old}` | `--{new}` |" for old, new in sorted(compat.RENAMED.items())]
    for name, spellings in sorted(compat.VALUES.items()):
        for old, new in spellings.items():
            target = compat.RENAMED.get(name, name)
            lines.append(f"| `--{name} {old}` | {f'`--{target} {new}`' if new else 'as if it were not there'} |")
    lines += ["", "## Without effect", "", "Accepted, with one notice.", "", "| flag | because |", "|---|---|"]
    lines += [f"| `--{name}` | {why} |" for name, why in sorted(compat.UNNEEDED.items())]
    lines += ["", "## Not built yet", "", "Refused, unless the value asks for nothing (`false`, `0`, `none`).", ""]
    lines += ["| flag | instead |", "|---|---|"]
    lines += [f"| `--{name}` | {advice} |" for name, advice in sorted(compat.NOT_BUILT.items())]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(), encoding="utf-8")
