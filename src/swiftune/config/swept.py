"""What a sweep is: flags with several values, and the runs that they make."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from pydantic import create_model

from swiftune.config.commands import COMMANDS, SftArguments
from swiftune.config.given import Given, Words
from swiftune.config.parse import check
from swiftune.config.sweep import SweepArguments

SWEPT = {name: command for name, command in COMMANDS.items() if issubclass(command, SftArguments)}
"""The commands that can be swept."""
METRICS = ("train_runtime", "train_loss", "acc", "eval_loss", "eval_acc", "memory(GiB)", "tokens/s")
"""The figures of every run, under the names of its log."""

Point = tuple[Given, ...]
"""A value for each flag of a dimension."""


@dataclass(frozen=True)
class Choices:
    """Flags that change together, and what they change to."""

    names: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def corners(self) -> tuple[Point, ...]:
        """What has to be right for all of it to be."""
        return self.points

    def __str__(self) -> str:
        return json.dumps([[given.value for given in point] for point in self.points], ensure_ascii=False)


@dataclass(frozen=True)
class Range:
    """A number that is searched for between two others."""

    name: str
    low: float
    high: float
    whole: bool
    place: str

    @property
    def names(self) -> tuple[str, ...]:
        """The one flag."""
        return (self.name,)

    @property
    def log(self) -> bool:
        """Whether it is searched by orders of magnitude: where it spans one."""
        return self.low > 0 and self.high >= 10 * self.low

    @property
    def corners(self) -> tuple[Point, ...]:
        """The two ends."""
        return self.at(self.low), self.at(self.high)

    def at(self, value: float) -> Point:
        """The point of a value, of which four digits are kept."""
        kept = int(value) if self.whole else min(max(float(f"{value:.4g}"), self.low), self.high)
        return (Given(self.name, Words([text(kept)]), self.place),)

    def __str__(self) -> str:
        return f"{text(self.low)}..{text(self.high)}"


Dimension = Choices | Range


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str
    """Of its folder."""
    values: dict[str, str]
    """What is swept, as it is shown."""
    given: dict[str, Any]
    """The arguments of its command that are not left at their defaults, without a folder."""
    evaluates: bool

    @property
    def words(self) -> list[str]:
        """The flags of its command, as they are typed."""
        return words_of(self.given)


@dataclass(frozen=True)
class Sweep:
    """All that ``swift sweep`` was asked for."""

    command: str
    options: SweepArguments
    dimensions: tuple[Dimension, ...]
    words: tuple[str, ...]
    """As it was typed."""
    given: tuple[tuple[Given, ...], ...]
    """What is given besides, in the file and on the command line."""

    @property
    def again(self) -> str:
        """The line that goes on with it."""
        return shlex.join(["swift", "sweep", *self.words])

    @property
    def names(self) -> list[str]:
        """The flags that are swept."""
        return [name for dimension in self.dimensions for name in dimension.names]

    @property
    def metric(self) -> str:
        """What the best run is chosen by."""
        return self.options.sweep_metric or ("eval_loss" if self.first.evaluates else "train_loss")

    @property
    def first(self) -> Run:
        """The run with the first value of each flag."""
        return self.run([dimension.corners[0] for dimension in self.dimensions])

    def run(self, points: Sequence[Point], number: int | None = None) -> Run:
        """The run with one point of each dimension.

        Args:
            number: of a trial, which stands in the name of its folder.

        Raises:
            ArgumentsError: its arguments are wrong.
        """
        swept = list(itertools.chain(*points))
        args = check(with_own_flags(self.command), [*self.given, swept])
        own = SweepArguments.model_fields.keys() | {"add_version"}
        given = args.model_dump(mode="json", include=args.model_fields_set - own)
        values = {one.name: _shown(one, getattr(args, one.name), given.get(one.name)) for one in swept}
        return Run(_folder(values, number), values, given, args.eval_strategy != "no")

    def grid(self) -> Iterator[list[Point]]:
        """Every combination, the last flag's values changing fastest."""
        return map(list, itertools.product(*(dimension.corners for dimension in self.dimensions)))

    def identity(self) -> dict[str, Any]:
        """What is the same when it is run again. A grid may get more values, or fewer."""
        searched = self.options.sweep_trials is not None
        return {
            "command": self.command,
            "fixed": {name: value for name, value in self.first.given.items() if name not in self.names},
            "swept": {
                name: str(dimension) if searched else "" for dimension in self.dimensions for name in dimension.names
            },
        }


def less_is_better(metric: str) -> bool:
    """Whether the best run is the one with the least of it."""
    return metric.endswith("loss") or metric in ("train_runtime", "memory(GiB)")


@cache
def with_own_flags(command: str) -> type[SftArguments]:
    """The arguments of the command, and those of the sweep."""
    return cast("type[SftArguments]", create_model("Both", __base__=(SweepArguments, SWEPT[command])))


def describe(values: dict[str, str]) -> str:
    """The values of a run, for people."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _shown(given: Given, value: Any, plain: Any) -> str:
    """A value as it is shown: as it was understood, or the file that a text came from."""
    typed = given.value[0] if isinstance(given.value, Words) else given.value
    if value is None or plain is None:
        return "default"
    return typed if isinstance(typed, str) and typed.endswith(".txt") else text(plain)


def _folder(values: dict[str, str], number: int | None) -> str:
    """The name of a run's folder: its values, made fit for any disk."""
    whole = ",".join(f"{name}={value}" for name, value in values.items())
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", whole)[:100]
    name = plain if plain == whole else f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return name if number is None else f"trial-{number:03d},{name}"


def words_of(given: Mapping[str, Any]) -> list[str]:
    """Flags as they are typed."""
    return [word for name, value in given.items() for word in as_words(name, value)]


def as_words(name: str, value: Any) -> list[str]:
    """A flag as it is typed. An empty list is what the flag is without."""
    if value is None or value == []:
        return []
    words = [text(item) for item in value] if isinstance(value, list) else [text(value)]
    if len(words) == 1 and words[0].startswith("-"):
        return [f"--{name}={words[0]}"]
    return [f"--{name}", *words]


def text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return " ".join(map(text, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
