"""From the command line of ``swift sweep`` to the runs that it means, all checked before the first one begins.

words ──► fixed arguments
     └──► axes (a flag and its values) ──zip──► dimensions ──product──► runs
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from swiftune.config import compat
from swiftune.config.declare import Arguments, arguments_of
from swiftune.config.evaluating import FIGURES, task_figures
from swiftune.config.given import Given, Words
from swiftune.config.parse import check, sources_of
from swiftune.config.sweep import SweepArguments
from swiftune.config.swept import METRICS, SWEPT, Choices, Dimension, Point, Range, Sweep, describe, with_own_flags
from swiftune.config.values import nearest
from swiftune.errors import ArgumentsError
from swiftune.runtime.console import notice

MOST = 1000
"""Runs of one sweep."""
_OF_THE_SWEEP = ("resume_from_checkpoint", "resume_only_model", "resume_anyway")


def parse(_: type[Arguments], words: Sequence[str]) -> Sweep:
    """Reads the words behind ``swift sweep``.

    Raises:
        ArgumentsError: with every mistake in them, and in each of the runs that they mean.
    """
    command = _command(words)
    both = with_own_flags(command)
    sources, mistakes = sources_of(both, words[1:])
    own = [[one for one in source if one.name in SweepArguments.model_fields] for source in sources]
    try:
        options = check(SweepArguments, own)
    except ArgumentsError as error:
        mistakes += error.mistakes
        options = check(SweepArguments, [[one for one in source if one.name == "zip"] for source in own])
    rest = [[one for one in source if one.name not in SweepArguments.model_fields] for source in sources]
    axes, fixed = _axes(rest, both, mistakes)
    _add_listed(axes, options, fixed, mistakes)
    if options.sweep_trials is None:
        mistakes += [f"{axis.place} {axis} is a range: say how many runs, --sweep_trials 20." for axis in _ranges(axes)]
    dimensions = _dimensions(axes, options.zip, both, mistakes)
    sweep = Sweep(command, options, tuple(dimensions), tuple(words), tuple(map(tuple, fixed)))
    mistakes += _wrong_runs(sweep)
    if not dimensions and not mistakes:
        mistakes.append("Nothing is swept: give a flag several values, such as --lora_rank 4 8 16.")
    mistakes = mistakes or _wrong_together(sweep)
    if mistakes:
        raise ArgumentsError(list(dict.fromkeys(mistakes)))
    return sweep


def _command(words: Sequence[str]) -> str:
    commands = " or ".join(SWEPT)
    if not words or words[0].startswith("-"):
        raise ArgumentsError([f"swift sweep needs the command that it is to run first: {commands}."])
    if words[0] in SWEPT:
        return words[0]
    raise ArgumentsError([f"swift sweep runs {commands}, not {words[0]!r}{_perhaps(words[0], SWEPT)}"])


Axes = dict[str, "Range | list[Given]"]


def _axes(sources: list[list[Given]], command: type[Arguments], mistakes: list[str]) -> tuple[Axes, list[list[Given]]]:
    """The flags with several values, and what is given besides. A flag that takes a list keeps its meaning."""
    arguments = arguments_of(command)
    axes: Axes = {}
    fixed: list[list[Given]] = []
    for source in sources:
        fixed.append([])
        for one in source:
            name = compat.RENAMED.get(one.name, one.name)
            values = _values(one) if name in arguments and not arguments[name].kind.many else [one.value]
            span = _range(name, values, command, one.place)
            axes.pop(name, None)
            if name in _OF_THE_SWEEP:
                mistakes.append(f"{one.place} has no place in a sweep: run the same sweep again, and it goes on.")
            elif span or len(values) > 1:
                axes[name] = span or [Given(name, value, one.place) for value in values]
            else:
                fixed[-1].append(Given(one.name, values[0] if values else one.value, one.place))
            if name == "add_version":
                notice(f"{one.place} has no effect in a sweep: each run has a folder of its own.")
    return axes, fixed


def _values(one: Given) -> list[Any]:
    if isinstance(one.value, Words):
        return [Words([word]) for word in one.value]
    return one.value if isinstance(one.value, list) else [one.value]


def _range(name: str, values: list[Any], command: type[Arguments], place: str) -> Range | None:
    """A value such as ``1e-5..1e-3`` of a flag that takes a number."""
    word = values[0] if len(values) == 1 else None
    word = "".join(word) if isinstance(word, Words) else word
    if not isinstance(word, str) or name not in command.model_fields or not (found := _SPAN.fullmatch(word)):
        return None
    annotation = command.model_fields[name].annotation
    kinds = {int, float} & {annotation, *typing.get_args(annotation)}
    low, high = map(float, found.groups())
    return Range(name, low, high, whole=int in kinds, place=place) if kinds and low < high else None


_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
_SPAN = re.compile(rf"{_NUMBER}\.\.{_NUMBER}")


def _ranges(axes: Axes) -> list[Range]:
    return [axis for axis in axes.values() if isinstance(axis, Range)]


def _add_listed(axes: Axes, options: SweepArguments, fixed: list[list[Given]], mistakes: list[str]) -> None:
    """Adds what ``--sweep`` lists."""
    given = {compat.RENAMED.get(one.name, one.name) for source in fixed for one in source} | axes.keys()
    for written, values in (options.sweep or {}).items():
        name = compat.RENAMED.get(written, written)
        if not isinstance(values, list) or not values:
            mistakes.append(f"--sweep {written} needs a list of values, in brackets.")
        elif name in given:
            mistakes.append(f"--sweep {written} and --{written} are at odds: give its values once.")
        elif name in _OF_THE_SWEEP or name in SweepArguments.model_fields:
            mistakes.append(f"--sweep {written} cannot be swept.")
        else:
            axes[name] = [Given(name, value, f"--sweep {written}") for value in values]


def _dimensions(axes: Axes, zipped: list[str], command: type[Arguments], mistakes: list[str]) -> list[Dimension]:
    together: dict[str, list[Given]] = {}
    for written in zipped:
        name = compat.RENAMED.get(written, written)
        axis = axes.get(name)
        if isinstance(axis, list):
            together[name] = axis
        elif isinstance(axis, Range):
            mistakes.append(f"--zip names {written}, which is a range.")
        elif name in command.model_fields:
            mistakes.append(f"--zip names {written}, which does not have several values.")
        else:
            mistakes.append(f"--zip names {written}, which is no flag{_perhaps(name, [*axes, *command.model_fields])}")
    if len(zipped) == 1:
        mistakes.append("--zip needs two flags or more, which are walked together.")
    if len({len(axis) for axis in together.values()}) > 1:
        counts = ", ".join(f"{name} has {len(axis)}" for name, axis in together.items())
        mistakes.append(f"--zip walks its flags together, so each needs as many values: {counts}.")
        together = {}
    found: list[Dimension] = []
    for name, axis in axes.items():
        if isinstance(axis, Range):
            found.append(axis)
        elif name not in together:
            found.append(Choices((name,), tuple((one,) for one in axis)))
        elif name == next(iter(together)):
            found.append(Choices(tuple(together), tuple(zip(*together.values(), strict=True))))
    return found


def _wrong_runs(sweep: Sweep) -> list[str]:
    """The mistakes in each value, with the first value of every other flag."""
    first = [dimension.corners[0] for dimension in sweep.dimensions]
    runs = [first] + [
        [*first[:i], point, *first[i + 1 :]]
        for i, dimension in enumerate(sweep.dimensions)
        for point in dimension.corners[1:]
    ]
    return _mistakes_in(sweep, runs)


def _wrong_together(sweep: Sweep) -> list[str]:
    """What is wrong with values that are right one by one."""
    metric, given = sweep.options.sweep_metric, sweep.first.given
    evaluated = (
        *FIGURES["rouge"],
        *FIGURES["bleu"],
        *task_figures(given.get("eval_dataset", []), given.get("metric", [])),
    )
    known = [*METRICS, *(f"eval_{name}" for name in evaluated)]
    sure = not {"eval_dataset", "metric"}.intersection(sweep.names)
    if metric and metric not in known and (sure or not metric.startswith("eval_")):
        return [f"--sweep_metric {metric} is no figure of a run{_perhaps(metric, known)}"]
    if metric and metric.startswith("eval_") and not sweep.first.evaluates:
        return [f"--sweep_metric {metric} needs rows to evaluate on: --val_dataset or --split_dataset_ratio."]
    if sweep.options.sweep_trials is not None:
        return []
    count = math.prod(len(dimension.corners) for dimension in sweep.dimensions)
    if count > MOST:
        return [f"That is {count:,} combinations, and at most {MOST:,} are run: search among them, --sweep_trials 50."]
    mistakes = _mistakes_in(sweep, sweep.grid())
    if mistakes:
        return mistakes
    runs = [sweep.run(points) for points in sweep.grid()]
    twice = [run for i, run in enumerate(runs) if run.given in [other.given for other in runs[:i]]]
    return [f"{describe(run.values)} comes twice." for run in twice]


def _mistakes_in(sweep: Sweep, runs: Iterable[list[Point]]) -> list[str]:
    found: list[str] = []
    for points in runs:
        try:
            sweep.run(points)
        except ArgumentsError as error:
            found += error.mistakes
    return found


def _perhaps(word: str, words: Iterable[str]) -> str:
    """Ends a sentence about a wrong word."""
    near = nearest(word, words)
    return f"; did you mean {near}?" if near else "."
