"""``swift eval``: questions in, answers and figures out; of one model, or of several side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.config import EvalArguments
from swiftune.config import save as save_args
from swiftune.errors import Interrupted, OutputError
from swiftune.runtime.console import say
from swiftune.runtime.paths import locked
from swiftune.runtime.stop import exit_code

if TYPE_CHECKING:
    from swiftune.recipes.evaluate.candidates import Candidate
    from swiftune.recipes.evaluate.comparing import Latency, Line, SideBySide
    from swiftune.recipes.evaluate.scoring import Result
    from swiftune.tasks.task import Task


@dataclass
class Report:
    """What the command found.

    Attributes:
        labels: the models.
        results: by task, a result for each model.
        lines, sides, latencies: with ``--compare``.
        page: the HTML page, with ``--compare``.
    """

    labels: list[str]
    results: list[list[Result]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    sides: list[SideBySide] = field(default_factory=list)
    latencies: list[Latency | None] = field(default_factory=list)
    folder: Path = Path()
    page: Path | None = None


def evaluate(args: EvalArguments) -> Report:
    """The whole of the command, but for the harness that ``--eval_backend lm_eval`` hands its tasks to.

    Raises:
        SwiftuneError: see ``errors``; ``Interrupted`` after Ctrl-C, with every answer kept.
    """
    from swiftune.recipes.evaluate.candidates import candidates_of
    from swiftune.recipes.evaluate.questions import tasks_of

    candidates = candidates_of(args)
    run = next((c.resolved.args for c in candidates if c.resolved.args.dataset and c.resolved.home), None)
    tasks = tasks_of(args, run, aside=Path(args.eval_output_dir) / "set_aside.jsonl")
    report = Report([candidate.label for candidate in candidates], [[] for _ in tasks])
    with ExitStack() as stack:
        keys: list[list[dict[str, str]]] = [[] for _ in tasks]
        for candidate in candidates:
            stack.enter_context(locked(f"eval-{candidate.folder.name}", f"evaluating {candidate.label}"))
            try:
                _evaluate(args, candidate, tasks, report, keys)
            except KeyboardInterrupt as asked:
                stopped = Interrupted(f"Stopped. What was answered is in {candidate.folder}.")
                stopped.cure, stopped.exit_code = "The same command goes on from there.", exit_code(asked)
                raise stopped from None
        if args.compare:
            _compare(args, candidates, report, keys)
    report.folder = Path(args.eval_output_dir) if args.compare else candidates[0].folder
    return report


def _evaluate(
    args: EvalArguments,
    candidate: Candidate,
    tasks: Sequence[tuple[Task, int]],
    report: Report,
    keys: list[list[dict[str, str]]],
) -> None:
    """Adds one model's results to the report, and writes its own."""
    from swiftune.recipes.evaluate.comparing import time_answers
    from swiftune.recipes.evaluate.kept import Kept
    from swiftune.recipes.evaluate.scoring import score

    say(f"Model: {candidate.label} ({candidate.opened.folder})", style="dim")
    latency: Latency | None = None
    with candidate.asker() as asker:
        for (task, count), results, answered in zip(tasks, report.results, keys, strict=True):
            with Kept(candidate.folder / f"{task.name}.jsonl") as answers:
                asker.answer(task, range(count), answers)
                results.append(score(task, range(count), asker, answers))
            if args.compare:
                answered.append({a.question.id: a.key for a in asker.prompts(task, range(count)) if a.sample == 0})
        if args.compare:
            with Kept(candidate.folder / "latency.jsonl") as kept:
                latency = time_answers(*tasks[0], asker, kept)
    report.latencies.append(latency)
    figures = {
        task.name: _figures(results[-1], args.seed) for (task, _), results in zip(tasks, report.results, strict=True)
    }
    save_args(args, candidate.folder / "args.json")
    write(candidate.folder / "report.json", json.dumps({"model": candidate.label, "tasks": figures}, indent=2))


def _figures(result: Result, seed: int) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in result.figures(seed).items()}


def _compare(
    args: EvalArguments, candidates: Sequence[Candidate], report: Report, keys: list[list[dict[str, str]]]
) -> None:
    from swiftune.recipes.evaluate import comparing
    from swiftune.recipes.evaluate.kept import Kept
    from swiftune.recipes.evaluate.page import page

    for results, answered in zip(report.results, keys, strict=True):
        report.lines += comparing.compare(results, args.seed)
        with ExitStack() as stack:
            files = [stack.enter_context(Kept(result.answers)) for result in results]
            report.sides += comparing.most_different(results, files, answered)
    folder = Path(args.eval_output_dir)
    report.page = folder / "compare.html"
    table = comparing.as_json(report.lines, report.latencies, report.labels)
    write(folder / "compare.json", json.dumps(table, indent=2, ensure_ascii=False))
    write(report.page, page(report, [candidate.folder for candidate in candidates]))


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(f"--eval_output_dir: {path} cannot be written: {error.strerror or error}.") from error
