"""Puts the questions of a task to a model, and keeps every prompt and answer.

A line of the answers: ``key``, ``id``, ``sample``, ``prompt`` (as the model read it), ``question``, ``reference``,
``response``, ``finish_reason``, ``latency`` and ``first_token_latency`` (seconds), ``prompt_tokens``,
``response_tokens``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swiftune.data.ledger import RowFault
from swiftune.generate.engine import Engine, Request, Sampling
from swiftune.recipes.evaluate.kept import Kept
from swiftune.runtime.console import err, warn
from swiftune.runtime.stop import StopRequest
from swiftune.tasks.task import Question, Task

if TYPE_CHECKING:
    from rich.progress import Progress

    from swiftune.data.render import Renderer

WINDOW = 16
"""Batches that the engine is given at once: it may sort them by length, and fill up places that fall free."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt, to be answered or answered already."""

    key: str
    """Changes with everything the answer depends on besides the model."""
    question: Question
    sample: int
    request: Request | None
    """``None``: there is no room for it, or the template refuses it."""
    why: str = ""


@dataclass(frozen=True)
class Asker:
    """How a model is asked.

    Args:
        engine: opens the model; not called where every answer is there.
        samples: answers to each question.
        batch: questions answered at once.
        max_prompt: most tokens of a prompt, where there is a limit.
    """

    engine: Callable[[], Engine]
    renderer: Renderer
    sampling: Sampling
    samples: int = 1
    batch: int = 1
    max_prompt: int | None = None

    def prompts(self, task: Task, chosen: range) -> Iterator[Asked]:
        """The chosen questions of a task as prompts, in order."""
        for index in chosen:
            question = task[index]
            for sample in range(self.samples):
                yield self._prompt(task, question, index, sample)

    def answer(
        self, task: Task, chosen: range, answers: Kept, *, stop: StopRequest | None = None, quiet: bool = False
    ) -> bool:
        """Answers what is not answered yet, and writes each answer as soon as it is there.

        Returns:
            Whether all is answered: False where ``stop`` asked to stop.

        Raises:
            KeyboardInterrupt: Ctrl-C; what was answered is kept.
        """
        waiting: list[Asked] = []
        with progress(quiet=quiet) as bar:
            row = bar.add_task(f"{task.name}: answering", total=len(chosen) * self.samples)
            for asked in self.prompts(task, chosen):
                if stop:
                    return False
                if asked.key in answers:
                    bar.advance(row)
                    continue
                if asked.request is None:
                    warn(f"{task.name}: question {asked.question.id} cannot be asked and counts as wrong: {asked.why}.")
                    self._write(answers, asked, response="", finish_reason="not asked")
                    bar.advance(row)
                    continue
                waiting.append(asked)
                if len(waiting) == self.batch * WINDOW:
                    self._generate(waiting, answers, bar, stop)
                    waiting = []
            self._generate(waiting, answers, bar, stop)
        return not stop

    def _generate(self, waiting: list[Asked], answers: Kept, bar: Progress, stop: StopRequest | None) -> None:
        if not waiting:
            return
        engine = self.engine()
        requests = [asked.request for asked in waiting if asked.request is not None]
        for index, answer in engine.generate(requests):
            self._write(
                answers,
                waiting[index],
                prompt=self.renderer.tokenizer.decode(list(requests[index].prompt_ids)),
                response=answer.text,
                finish_reason=answer.finish_reason,
                latency=round(answer.latency, 4),
                first_token_latency=round(answer.first_token_latency, 4),
                prompt_tokens=answer.prompt_tokens,
                response_tokens=len(answer.token_ids),
            )
            bar.advance(bar.task_ids[0])
            if stop:
                return

    def _write(self, answers: Kept, asked: Asked, **values: object) -> None:
        question = asked.question
        last = question.messages[-1]["content"]
        answers.add(
            asked.key, id=question.id, sample=asked.sample, question=last, reference=question.reference, **values
        )

    def _prompt(self, task: Task, question: Question, index: int, sample: int) -> Asked:
        seed = None if self.sampling.seed is None else self.sampling.seed + index * self.samples + sample
        tokens = self.sampling.max_new_tokens or task.max_new_tokens
        sampling = replace(self.sampling, seed=seed, max_new_tokens=tokens)
        try:
            ids = self.renderer.prompt(question.messages, question.row.get("tools"))
            room = self.max_prompt
            why = "" if room is None or len(ids) <= room else f"{len(ids)} tokens, and there is room for {room}"
        except RowFault as fault:
            ids, why = [], str(fault)
        depends = [question.id, sample, list(map(int, ids)), repr(sampling)]
        key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:20]
        return Asked(key, question, sample, None if why else Request(ids, sampling), why)


def progress(*, quiet: bool) -> Progress:
    """A bar with the time that is left, on stderr."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=err(), disable=quiet)
