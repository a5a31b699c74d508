"""Arguments as they are given: words of a command line, keys of a file, before anything is known of them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swiftune.errors import ArgumentsError

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Given:
    """One argument as it is given."""

    name: str
    value: Any
    """The words behind the flag, as a ``Words``; or the value of the key."""
    place: str
    """What it is called in a message: ``--lora_rank``, or ``run.yaml:3: lora_rank``."""


class Words(list[str]):
    """The words behind a flag."""


@dataclass
class CommandLine:
    """A command line, taken apart."""

    files: list[str] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def read_command_line(words: Sequence[str], known: Collection[str]) -> CommandLine:
    """Takes a command line apart: files of arguments (first, or behind ``--config``), and flags with their words.

    Args:
        known: names of flags; only to find one that lacks a dash.
    """
    line = CommandLine()
    behind: list[str] = line.files
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            behind = Words([value] if equals else [])
            line.given.append(Given(name.replace("-", "_"), behind, f"--{name}"))
        elif re.match(r"-[A-Za-z]", word) and word[1:].partition("=")[0].replace("-", "_") in known:
            line.mistakes.append(f"{word}: flags begin with two dashes, -{word}.")
            behind = []
        else:
            behind.append(word)
    for given in [given for given in line.given if given.name == "config"]:
        line.given.remove(given)
        line.files += given.value or ["--config"]
    for word in [word for word in line.files if not word.endswith(_SUFFIXES)]:
        line.files.remove(word)
        line.mistakes.append(
            "--config needs the name of a YAML or JSON file."
            if word == "--config"
            else f"{word!r} stands where a flag or a YAML or JSON file was expected; flags begin with two dashes."
        )
    if len(line.files) > 1:
        line.mistakes.append(f"One file of arguments can be given, not {len(line.files)}: {', '.join(line.files)}.")
    return line


def read_file(path: str | Path) -> list[Given]:
    """The arguments in a YAML or JSON file.

    Raises:
        ArgumentsError: it cannot be read, or is no mapping of names to values; with the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentsError([f"{path} is not UTF-8 text (byte {error.start})."]) from error
    except (OSError, ValueError) as error:
        raise ArgumentsError([f"{path} cannot be read: {getattr(error, 'strerror', None) or error}."]) from error
    try:
        pairs = _json_pairs(text) if str(path).endswith(".json") else _yaml_pairs(text)
    except RecursionError:
        raise ArgumentsError([f"{path} is nested too deeply."]) from None
    except _FileError as error:
        raise ArgumentsError([f"{path}{error}"]) from error
    return [Given(name, value, f"{path}:{line}: {name}") for name, value, line in pairs]


class _FileError(ValueError):
    """Completes the name of the file."""


def _yaml_pairs(text: str) -> list[tuple[str, Any, int]]:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise _FileError(": it should hold lines such as `learning_rate: 1e-4`.")
        loader.flatten_mapping(node)
        return [
            (str(key.value), loader.construct_object(value, deep=True), key.start_mark.line + 1)
            for key, value in node.value
        ]
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _FileError(f"{line}: this is not YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, _FileError):
            raise
        raise _FileError(f": this is not YAML: {' '.join(str(error).split())}.") from error


def _json_pairs(text: str) -> list[tuple[str, Any, int]]:
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise _FileError(f":{error.lineno}: this is not JSON: {error.msg}.") from error
    except ValueError as error:
        raise _FileError(f": this is not JSON: {error}.") from error
    if not isinstance(value, _Pairs):
        raise _FileError(': it should hold an object such as {"learning_rate": 1e-4}.')
    return [(name, _plain(item), _line_of(text, name)) for name, item in value]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object whose repeated keys are still there."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {name: _plain(item) for name, item in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _line_of(text: str, name: str) -> int:
    found = re.search(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:", text)
    return text.count("\n", 0, found.start()) + 1 if found else 1
