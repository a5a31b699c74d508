"""From a command line (or a file, or a dictionary) to checked arguments, with every mistake found at once.

words, keys ──rename──► fields of the command ──shape──► values ──check──► Arguments ──rules──► Arguments
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from swiftune.config import compat, rules
from swiftune.config.commands import COMMANDS
from swiftune.config.declare import Arguments, arguments_of
from swiftune.config.given import Given, Words, read_command_line, read_file
from swiftune.config.values import RECORDED, Kind, nearest
from swiftune.errors import ArgumentsError
from swiftune.runtime.console import notice, warn

A = TypeVar("A", bound=Arguments)


def parse(command: type[A], words: Sequence[str]) -> A:
    """Reads a command line.

    Raises:
        ArgumentsError: with every mistake in it.
    """
    sources, mistakes = sources_of(command, words)
    return check(command, sources, mistakes)


def sources_of(command: type[Arguments], words: Sequence[str]) -> tuple[list[list[Given]], list[str]]:
    """What the file that a command line names gives, and what the line itself does, which wins over it.

    Returns:
        These two, and the mistakes that have been found so far.
    """
    line = read_command_line(words, _Reader(command).known)
    mistakes = list(line.mistakes)
    in_file: list[Given] = []
    try:
        in_file = read_file(line.files[0]) if len(line.files) == 1 else []
    except ArgumentsError as error:
        mistakes += error.mistakes
    return [in_file, line.given], mistakes


def check(command: type[A], sources: Iterable[Iterable[Given]], mistakes: Iterable[str] = ()) -> A:
    """Arguments from sources, of which a later one wins over those before it.

    Args:
        mistakes: what has been found already.

    Raises:
        ArgumentsError: with every mistake in them.
    """
    reader = _Reader(command)
    reader.mistakes += mistakes
    for source in sources:
        reader.take(source)
    return reader.finish()


def build(command: type[A], values: Mapping[str, Any]) -> A:
    """Checks values that come from a program (a web form), as ``parse`` does those of a command line.

    Raises:
        ArgumentsError: with every mistake in them.
    """
    return check(command, [[Given(name, value, f"--{name}") for name, value in values.items()]])


def build_recorded(command: type[A], given: Iterable[Given]) -> tuple[A, list[str]]:
    """Arguments of an earlier run, and the names among them that this version does not know.

    Names of other commands are passed over; so are rules, which the earlier run has kept.
    """
    reader = _Reader(command)
    fields = [g for g in given if compat.RENAMED.get(g.name, g.name) in reader.arguments]
    unknown = [g.name for g in given if g not in fields and not _is_known(g.name)]
    reader.take(fields)
    args = reader.check(context=RECORDED)
    if reader.mistakes:
        raise ArgumentsError([_one_line(mistake) for mistake in reader.mistakes])
    return args, unknown


class _Reader(Generic[A]):
    """The values found so far, and the mistakes."""

    def __init__(self, command: type[A]) -> None:
        self.command = command
        self.arguments = arguments_of(command)
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.mistakes: list[str] = []
        self.wrong: set[str] = set()

    @property
    def known(self) -> set[str]:
        """Every name that means something to this command."""
        return {*self.arguments, *(old for old, new in compat.RENAMED.items() if new in self.arguments)}

    def take(self, given: Iterable[Given]) -> None:
        """Takes one source of arguments. What a later source says replaces what an earlier one said."""
        said: dict[str, Given] = {}
        for one in given:
            name = compat.RENAMED.get(one.name, one.name)
            if name not in self.arguments:
                self._foreign(one)
                continue
            try:
                value = self._value(name, one)
            except ValueError as error:
                self._mistake(name, f"{one.place} {error}")
                continue
            if name != one.name:
                notice(_one_line(f"{one.place} is --{name} here."))
            if value is None:
                continue
            if name in said and value != self.values[name]:
                if said[name].place == one.place and isinstance(one.value, Words):
                    warn(f"{one.place} is given twice; the last one counts.")  # as scripts with "$@" at the end expect
                else:
                    self._mistake(name, _twice(said[name], one))
            said[name] = one
            self.values[name], self.places[name] = value, one.place

    def finish(self) -> A:
        """The arguments.

        Raises:
            ArgumentsError: with all mistakes.
        """
        args = self.check()
        self.mistakes += rules.broken(args, self.wrong)
        if self.mistakes:
            raise ArgumentsError([_one_line(mistake) for mistake in self.mistakes])
        return args

    def check(self, context: str | None = None) -> A:
        """The arguments as far as they are right; what is wrong becomes a mistake, and its default stands in."""
        right = {name: value for name, value in self.values.items() if name not in self.wrong}
        try:
            return self.command.model_validate(right, context=context)
        except ValidationError as error:
            details = _by_field(error)
            found = [name for name in right if name in details]
            if not found:
                raise
            for name in found:
                self._mistake(name, f"{self.places[name]} {_wrong(self.arguments[name].kind, details[name])}")
            return self.check(context)

    def _value(self, name: str, given: Given) -> Any:
        kind = self.arguments[name].kind
        value = _from_words(kind, given.value) if isinstance(given.value, Words) else _from_file(kind, given.value)
        for key in (given.name, name):
            spellings = compat.VALUES.get(key, {})
            word = str(value).lower()
            if word in spellings:
                if spellings[word] is not None:
                    notice(_one_line(f"{given.place} {word} is --{name} {spellings[word]} here."))
                return spellings[word]
        return value

    def _mistake(self, name: str, sentence: str) -> None:
        self.wrong.add(name)
        self.mistakes.append(sentence)

    def _foreign(self, given: Given) -> None:
        """A name that is none of this command's."""
        value = given.value
        word = " ".join(value) if isinstance(value, Words) else str(value)
        if given.name in compat.UNNEEDED:
            notice(_one_line(f"{given.place} has no effect here: {compat.UNNEEDED[given.name]}."))
        elif _is_anyones(given.name):
            commands = " and ".join(name for name, cls in COMMANDS.items() if given.name in arguments_of(cls))
            if not compat.asks_nothing(word):
                self.mistakes.append(f"{given.place} is an argument of swift {commands}, not of this command.")
        elif compat.is_known(given.name):
            advice = compat.not_built(given.name, word or "true")
            if advice is not None:
                self.mistakes.append(f"{given.place} is not built yet{advice and f': {advice}'}.")
        else:
            near = nearest(given.name, [*self.known, *compat.UNNEEDED])
            near = compat.RENAMED.get(near, near)
            self.mistakes.append(f"{given.place} is unknown{near and f'; did you mean --{near}?'}{'' if near else '.'}")


def _is_anyones(name: str) -> bool:
    """Whether it is an argument of some command."""
    return any(name in arguments_of(command) for command in COMMANDS.values())


def _is_known(name: str) -> bool:
    """Whether anything here knows the name."""
    return name in compat.RENAMED or name in compat.UNNEEDED or compat.is_known(name) or _is_anyones(name)


def _from_words(kind: Kind, words: Words) -> Any:
    if kind.many:
        if not words:
            raise ValueError(f"needs one or more values, each {kind.expected}.")
        return list(words)
    if not words and kind.boolean:
        return True
    if not words:
        raise ValueError(f"needs a value: {kind.expected}.")
    if len(words) > 1:
        rest = " ".join(words[1:])
        raise ValueError(f"takes one value; {shorten(rest)} is left over. Put quotes round a value with spaces.")
    return words[0]


def _from_file(kind: Kind, value: Any) -> Any:
    """YAML reads a bare ``no`` as false; where a choice of that name exists, it is meant."""
    if isinstance(value, bool) and not kind.boolean:
        words = ("true", "yes", "on") if value else ("no", "none", "false", "off")
        word = next((word for word in words if word in kind.choices), None)
        return value if word is None else [word] if kind.many else word
    return value


def _twice(first: Given, second: Given) -> str:
    if first.place == second.place:
        return f"{first.place} is given twice, with different values."
    return f"{first.place} and {second.place} are the same argument, and say different things."


def _by_field(error: ValidationError) -> dict[str, list[Any]]:
    """pydantic's findings by field; of a union it has one for every member."""
    found: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(str(detail["loc"][0]), []).append(detail)
    return found


def _wrong(kind: Kind, details: list[Any]) -> str:
    """Completes the name of an argument: what it takes, and what it was given."""
    first = next((d for d in details if d["type"] == "value_error"), details[0])
    value = shorten(first["input"])
    if first["type"] == "value_error":
        return f"takes {kind.expected}, not {value}: {first['ctx']['error']}."
    if first["type"] in ("too_long", "too_short"):
        return f"takes {kind.metavar}, not {first['ctx']['actual_length']} values."
    if kind.many and first["type"] == "list_type":
        return f"takes one or more values, each {kind.expected}, not {value}."
    near = nearest(first["input"], kind.choices) if isinstance(first["input"], str) else ""
    return f"takes {kind.expected}, not {value}{near and f'; did you mean {near}?'}{'' if near else '.'}"


def shorten(value: Any) -> str:
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(text: str) -> str:
    """Without the line breaks and terminal codes that a name or value may bring."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
