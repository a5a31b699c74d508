"""The same questions put to several models: figures beside each other, and the answers that differ most."""

from __future__ import annotations

import hashlib
import json
import statistics as plain
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from swiftune.recipes.evaluate.asking import Asker
from swiftune.recipes.evaluate.kept import Kept
from swiftune.recipes.evaluate.scoring import Figure, Result
from swiftune.tasks import statistics
from swiftune.tasks.task import Task

SHOWN = 5
"""Questions of each task whose answers are shown side by side."""
TIMED = 8
"""Questions that are asked one by one to time the answers, after one that is not counted."""
TIMED_TOKENS = 32


@dataclass(frozen=True)
class Cell:
    """A figure of one model, and how far it is from the first model's."""

    figure: Figure
    difference: float
    low: float
    high: float
    """95% interval of the difference, by the paired bootstrap."""
    questions: int
    """Questions that have the figure in both."""


@dataclass(frozen=True)
class Line:
    """A figure of a task, a cell for each model."""

    task: str
    figure: str
    cells: list[Cell]


@dataclass(frozen=True)
class SideBySide:
    """One question, and all the answers to it."""

    task: str
    question: str
    reference: str
    answers: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Latency:
    """Medians over questions asked one by one."""

    first_token: float
    """Seconds to the first token."""
    per_token: float
    """Seconds from one token to the next."""


def compare(results: Sequence[Result], seed: int) -> list[Line]:
    """One task's results, a model each, the first of which the others are compared with."""
    figures = [result.figures(seed) for result in results]
    names = [name for name in results[0].totals if all(name in each for each in figures)]
    return [
        Line(
            results[0].task,
            name,
            [_cell(each[name], result, results[0], name, seed) for each, result in zip(figures, results, strict=True)],
        )
        for name in names
    ]


def _cell(figure: Figure, result: Result, first: Result, name: str, seed: int) -> Cell:
    if result is first:
        return Cell(figure, 0.0, 0.0, 0.0, figure.questions)
    both = [question for question in first.kept[name] if question in result.kept[name]]
    one_ND, other_ND, total = result.array(name, both), first.array(name, both), result.totals[name]
    low, high = statistics.paired_interval(one_ND, other_ND, total, seed=seed)
    difference = total(one_ND.sum(0), len(both)) - total(other_ND.sum(0), len(both))
    return Cell(figure, difference, low, high, len(both))


def most_different(
    results: Sequence[Result], answers: Sequence[Kept], keys: Sequence[dict[str, str]]
) -> list[SideBySide]:
    """The questions on which the models' scores are furthest apart.

    Args:
        keys: by model and question, where its first answer is.
    """
    name = next(iter(results[0].totals))
    total = results[0].totals[name]

    def scores(question: str) -> list[float]:
        return [total(result.array(name, [question])[0], 1) for result in results]

    everywhere = [q for q in results[0].kept[name] if all(q in result.kept[name] for result in results)]
    apart = sorted(everywhere, key=lambda question: min(scores(question)) - max(scores(question)))[:SHOWN]
    shown = []
    for question in apart:
        lines = [kept[of[question]] for kept, of in zip(answers, keys, strict=True)]
        texts = [line["response"] for line in lines]
        shown.append(SideBySide(results[0].task, lines[0]["question"], lines[0]["reference"], texts, scores(question)))
    return shown


def time_answers(task: Task, count: int, asker: Asker, kept: Kept) -> Latency | None:
    """Asks some questions one by one; ``None`` where none can be asked. What was measured before is read."""
    prompts = [
        asked.request for asked in asker.prompts(task, range(min(count, TIMED + 1))) if asked.request is not None
    ]
    if not prompts:
        return None
    key = hashlib.sha256(json.dumps([list(p.prompt_ids) for p in prompts]).encode()).hexdigest()[:20]
    if key not in kept:
        engine = asker.engine()
        first: list[float] = []
        per_token: list[float] = []
        for request in prompts:
            sampling = replace(request.sampling, max_new_tokens=TIMED_TOKENS)
            ((_, answer),) = engine.generate([replace(request, sampling=sampling)])
            first.append(answer.first_token_latency)
            if (steps := len(answer.token_ids) - 1) > 0:
                per_token.append((answer.latency - answer.first_token_latency) / steps)
        # The first question warms the engine up.
        timed = first[1:] or first, per_token[1:] or per_token or [0.0]
        kept.add(key, first_token=plain.median(timed[0]), per_token=plain.median(timed[1]))
    line = kept[key]
    return Latency(line["first_token"], line["per_token"])


def as_json(lines: Sequence[Line], latencies: Sequence[Latency | None], labels: Sequence[str]) -> dict[str, Any]:
    """The table for programs."""
    return {
        "models": list(labels),
        "figures": [asdict(line) for line in lines],
        "latency": [latency and asdict(latency) for latency in latencies],
    }
