"""Scores kept answers, keeps the scores, and makes figures of them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from swiftune.recipes.evaluate.asking import Asked, Asker, progress
from swiftune.recipes.evaluate.kept import Kept
from swiftune.runtime.console import warn
from swiftune.tasks import statistics
from swiftune.tasks.statistics import Array, Total
from swiftune.tasks.task import Judged, Task


@dataclass(frozen=True)
class Figure:
    """A figure of a task, with its 95% interval."""

    value: float
    low: float
    high: float
    method: str
    """``wilson`` or ``bootstrap``."""
    questions: int


@dataclass
class Result:
    """What a model's answers to a task are worth.

    Attributes:
        kept: by figure and question, the numbers kept.
        totals: how each figure is made of them.
    """

    task: str
    answers: Path
    totals: dict[str, Total]
    kept: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(dict))

    def figures(self, seed: int) -> dict[str, Figure]:
        """The figures by name, the one that the task is known by first."""
        return {name: self._figure(name, total, seed) for name, total in self.totals.items() if self.kept[name]}

    def array(self, figure: str, questions: Iterable[str]) -> Array:
        """The numbers kept of these questions, (N, D)."""
        return np.array([self.kept[figure][question] for question in questions], dtype=float)

    def value(self, figure: str) -> float:
        """A figure without its interval."""
        kept_ND = self.array(figure, self.kept[figure])
        return self.totals[figure](kept_ND.sum(0), len(kept_ND))

    def _figure(self, name: str, total: Total, seed: int) -> Figure:
        kept_ND = self.array(name, self.kept[name])
        low, high = statistics.interval(kept_ND, total, seed=seed)
        shares = total is statistics.mean and bool(np.isin(kept_ND, (0.0, 100.0)).all())
        return Figure(self.value(name), low, high, "wilson" if shares else "bootstrap", len(kept_ND))


def score(task: Task, chosen: range, asker: Asker, answers: Kept, *, quiet: bool = False) -> Result:
    """The result of the chosen questions, all of which are answered.

    Scores are kept beside the answers: those of an answer that was scored before are read.

    Raises:
        RunError: a judge or a program cannot be had. What was scored is kept.
    """
    result = Result(task.name, answers.path, dict(task.figures))
    by_question: dict[str, list[Judged]] = defaultdict(list)
    part = hashlib.sha256(task.key.encode()).hexdigest()[:8]
    path = answers.path.with_name(f"{answers.path.stem}.scores-{part}.jsonl")
    with Kept(path) as scores, progress(quiet=quiet) as bar:
        row = bar.add_task(f"{task.name}: scoring", total=len(chosen) * asker.samples)
        for asked, judged in _judged(task, asker.prompts(task, chosen), answers, scores):
            by_question[asked.question.id].append(judged)
            bar.advance(row)
    for question, several in by_question.items():
        for name in task.figures:
            if values := [judged.scores[name] for judged in several if name in judged.scores]:
                # Means stay means; of what is only summed (BLEU's counts) the sum over samples is as good.
                combined = np.sum(values, 0) / (len(values) if task.figures[name] is statistics.mean else 1)
                result.kept[name][question] = combined.tolist()
    _pass_at(result, by_question, asker.samples)
    without = len(chosen) - len(result.kept[next(iter(task.figures))])
    if without:
        warn(f"{task.name}: {without} of {len(chosen)} answers could not be scored, and count for nothing: see {path}.")
    return result


def _judged(task: Task, prompts: Iterator[Asked], answers: Kept, scores: Kept) -> Iterator[tuple[Asked, Judged]]:
    """Every prompt with what its answer is worth, several at a time where the task can."""

    def known(asked: Asked) -> Judged | None:
        """What was found before. An answer that lacks a figure, as a judge gave no rating, is scored again."""
        key = _key(asked)
        if key not in scores:
            return None
        line = scores[key]
        return Judged(line["scores"], line["why"]) if line["scores"].keys() >= task.figures.keys() else None

    def keep(asked: Asked, judged: Judged) -> Judged:
        scores.add(_key(asked), id=asked.question.id, scores=judged.scores, why=judged.why)
        return judged

    def settled(asked: Asked, found: Judged | Future[Judged]) -> tuple[Asked, Judged]:
        return asked, found if isinstance(found, Judged) else keep(asked, found.result())

    if not task.workers:
        for asked in prompts:
            yield asked, known(asked) or keep(asked, task.score(asked.question, answers[asked.key]["response"]))
        return
    pending: list[tuple[Asked, Judged | Future[Judged]]] = []
    pool = ThreadPoolExecutor(task.workers)
    try:
        for asked in prompts:
            response = answers[asked.key]["response"]
            pending.append((asked, known(asked) or pool.submit(task.score, asked.question, response)))
            while len(pending) > 4 * task.workers:
                yield settled(*pending.pop(0))
        for each in pending:
            yield settled(*each)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _key(asked: Asked) -> str:
    """Changes with the answer's key, and with what the answer is compared with."""
    depends = [asked.key, asked.question.reference, asked.question.row]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:20]


def _pass_at(result: Result, by_question: dict[str, list[Judged]], samples: int) -> None:
    """Adds pass@k for the k that there are samples for."""
    if "pass@1" not in result.totals or samples == 1:
        return
    for k in sorted({10, 100, samples}):
        if k <= samples:
            result.totals[f"pass@{k}"] = statistics.mean
            for question, several in by_question.items():
                right = sum(judged.scores["pass@1"] == [100.0] for judged in several)
                result.kept[f"pass@{k}"][question] = [100 * statistics.pass_at_k(samples, right, k)]
