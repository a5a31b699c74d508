"""What a task is: questions, and what an answer to one of them is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from swiftune.tasks.statistics import Total, mean
from swiftune.types import Message

Scores = dict[str, list[float]]
"""By figure, the numbers that are kept of one answer; most keep one, a percentage."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question."""

    id: str
    messages: list[Message]
    """The prompt; examples before the question are turns of it."""
    reference: str
    """The right answer, as people read it."""
    row: dict[str, Any] = field(default_factory=dict)
    """What the score needs besides."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What an answer is worth."""

    scores: Scores
    why: str = ""
    """What it is worth no more for, where there is something to say."""


class Task(Protocol):
    """A set of questions with a way to score answers.

    Attributes:
        name: short, for tables, files and log keys.
        figures: the figures it gives, the one it is known by first, and how each is made of many questions.
        max_new_tokens: room for an answer, where the user says nothing.
        workers: threads in which ``score`` may run at once; 0: only in the main thread.
        key: changes with everything that ``score`` depends on besides the answer.
    """

    name: str
    figures: dict[str, Total]
    max_new_tokens: int
    workers: int
    key: str

    def __len__(self) -> int:
        """How many questions there are."""

    def __getitem__(self, index: int) -> Question:
        """One of them."""

    def score(self, question: Question, answer: str) -> Judged:
        """What ``answer`` is worth. Never raises because of what the answer is."""


class Listed:
    """A task whose questions are all in memory."""

    figures: dict[str, Total] = {"accuracy": mean}  # noqa: RUF012
    max_new_tokens = 256
    workers = 0
    key = ""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Question:
        return self._questions[index]


def percent(right: bool) -> list[float]:
    """What is kept of an answer that is right or wrong."""
    return [100.0 if right else 0.0]
