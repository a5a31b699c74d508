"""The rows of a data set, answered into a JSON Lines file.

A line: ``response``, ``labels`` (the row's own answer, if it has one), ``messages`` (the response as the last one),
``prompt`` (as the model read it), ``latency`` and ``first_token_latency`` (seconds), ``finish_reason``,
``prompt_tokens``, ``response_tokens``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from swiftune.data.ledger import Ledger, RowFault
from swiftune.errors import Interrupted, OutputError
from swiftune.generate.engine import Answer, Engine, Request, Sampling
from swiftune.generate.text_metrics import text_metrics
from swiftune.runtime.console import err
from swiftune.runtime.stop import StopRequest, exit_code
from swiftune.types import Message, Sample

if TYPE_CHECKING:
    from rich.progress import Progress

    from swiftune.data.render import Renderer


@dataclass(frozen=True, slots=True)
class Question:
    """A row without its own last answer, and that answer."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    reference: str | None
    request: Request


@dataclass
class AnswerFile:
    """Answers rows and writes them to ``path``, in the rows' order.

    Args:
        sampling: of every row; row n is drawn with ``seed + n``.
        batch: rows answered at once.
        max_prompt: most tokens of a prompt; longer rows are set aside, as are those that the template refuses.
    """

    engine: Engine
    renderer: Renderer
    sampling: Sampling
    path: Path
    batch: int
    max_prompt: int | None
    ledger: Ledger
    tokens: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)
    """(response, reference) of the rows that have a reference."""
    written: int = 0

    def fill(self, samples: Sequence[Sample], *, stream: bool, stop: StopRequest | None = None) -> dict[str, float]:
        """Answers ``samples``.

        Args:
            stream: show each answer on stdout while it is written, one row at a time.
            stop: when it asks to, the rest is left out.

        Returns:
            ``rows``, ``seconds``, ``tokens/s``, and ROUGE and BLEU where rows have references.

        Raises:
            OutputError: the file cannot be written.
            Interrupted: Ctrl-C; what was answered is in the file.
        """
        start = time.perf_counter()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", encoding="utf-8") as file, _progress(quiet=stream) as bar:
                task = bar.add_task("answering", total=len(samples))
                for first, last in _windows(len(samples), self.batch):
                    if stop:
                        break
                    questions = [q for i in range(first, last) if (q := self._question(samples[i], i)) is not None]
                    bar.advance(task, last - first - len(questions))
                    self._answer(questions, file, bar, stream)
        except OSError as error:
            raise OutputError(f"--result_path {self.path} cannot be written: {error.strerror or error}.") from error
        except KeyboardInterrupt as asked:
            stopped = Interrupted(f"Stopped: {self.written} of {len(samples)} rows are answered, in {self.path}.")
            stopped.exit_code = exit_code(asked)
            raise stopped from None
        seconds = time.perf_counter() - start
        scores = text_metrics([text for text, _ in self.pairs], [reference for _, reference in self.pairs])
        return {"rows": self.written, "seconds": seconds, "tokens/s": self.tokens / seconds, **scores}

    def _question(self, sample: Sample, number: int) -> Question | None:
        messages, reference = sample.messages, None
        if messages[-1]["role"] == "assistant":
            messages, reference = messages[:-1], messages[-1]["content"] or None
        seed = None if self.sampling.seed is None else self.sampling.seed + number
        try:
            if not any(message["role"] in ("user", "tool") for message in messages):
                raise RowFault("no question to be answered")
            ids = self.renderer.prompt(messages, sample.tools)
            room = min(self.max_prompt or len(ids), (self.engine.context or len(ids) + 1) - 1)
            if len(ids) > room:
                raise RowFault("prompt longer than there is room", f"{len(ids)} tokens, there is room for {room}")
        except RowFault as fault:
            self.ledger.withdraw(sample.place, fault.reason, fault.detail)
            return None
        return Question(messages, sample.tools, reference, Request(ids, replace(self.sampling, seed=seed)))

    def _answer(self, questions: list[Question], file: IO[str], bar: Progress, stream: bool) -> None:
        """Writes the answers in order: one that is done early waits for those before it, unless all is stopped."""
        answers = _shown(self.engine, questions) if stream else self.engine.generate([q.request for q in questions])
        waiting: dict[int, Answer] = {}
        next_one = 0
        try:
            for index, answer in answers:
                waiting[index] = answer
                bar.advance(bar.task_ids[0])
                while next_one in waiting:
                    self._write(questions[next_one], waiting.pop(next_one), file)
                    next_one += 1
        finally:
            for index in sorted(waiting):
                self._write(questions[index], waiting[index], file)

    def _write(self, question: Question, answer: Answer, file: IO[str]) -> None:
        line = {
            "response": answer.text,
            "labels": question.reference,
            "messages": [*question.messages, {"role": "assistant", "content": answer.text}],
            **({"tools": question.tools} if question.tools else {}),
            "prompt": self.renderer.tokenizer.decode(list(question.request.prompt_ids)),
            "latency": round(answer.latency, 4),
            "first_token_latency": round(answer.first_token_latency, 4),
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "response_tokens": len(answer.token_ids),
        }
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        self.written += 1
        self.tokens += len(answer.token_ids)
        if question.reference is not None:
            self.pairs.append((answer.text, question.reference))


def _windows(rows: int, batch: int) -> Iterator[tuple[int, int]]:
    """Stretches of rows within which the engine may sort by length; a batch of one gains nothing by it."""
    size = 8 * batch if batch > 1 else 1
    for first in range(0, rows, size):
        yield first, min(first + size, rows)


def _shown(engine: Engine, questions: list[Question]) -> Iterator[tuple[int, Answer]]:
    """Answers one by one, on stdout as they are written."""
    for index, question in enumerate(questions):
        print(f"[QUERY] {question.messages[-1]['content']}\n[RESPONSE] ", end="", flush=True)
        stream = engine.stream(question.request)
        with closing(stream):
            for piece in stream:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        print("" if question.reference is None else f"\n[LABELS] {question.reference}")
        print("-" * 50, flush=True)
        yield index, stream.answer


def _progress(*, quiet: bool) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err(),
        disable=quiet,
    )
