"""Questions with four answers to choose from: MMLU (arXiv:2009.03300), in English, and C-Eval (arXiv:2305.08322).

{"question": "What is true for a type-Ia supernova?", "subject": "astronomy", "answer": 0,
 "choices": ["This type occurs in binary systems.", "…", "…", "…"]}
{"question": "使用位填充方法，…", "A": "…", "B": "…", "C": "…", "D": "…", "answer": "C"}
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from swiftune.errors import DataError
from swiftune.tasks.benchmark_files import Source, column, examples_of, rows_of
from swiftune.tasks.task import Judged, Listed, Question, percent
from swiftune.types import Message

LETTERS = "ABCD"
SHOTS = 5
"""Examples before each question, from the split ``dev`` of its subject: as published."""


class Choice(Listed):
    """The answer is right if it names the right letter."""

    max_new_tokens = 16
    key = "choice 2"
    source: Source
    splits: tuple[str, ...]
    ask: str

    def __init__(self, place: Path, *, subset: str | None = None, shots: int | None = None) -> None:
        rows = rows_of(place, self.splits, subset)
        examples: dict[str, list[Message]] = defaultdict(list)
        for row in examples_of(place, "dev", subset, shots):
            turns = examples[_subject(row)]
            if len(turns) < 2 * (SHOTS if shots is None else shots):
                turns += [self._user(row), {"role": "assistant", "content": _letter(row)}]
        super().__init__(
            [
                Question(str(number), [*examples[_subject(row)], self._user(row)], _letter(row))
                for number, row in enumerate(rows)
            ]
        )

    def score(self, question: Question, answer: str) -> Judged:
        """100 or 0."""
        found = letter_in(answer)
        right = found == question.reference
        return Judged({"accuracy": percent(right)}, "" if right else f"read {found}, wanted {question.reference}")

    def _user(self, row: dict[str, Any]) -> Message:
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, _choices(row), strict=True))
        return {"role": "user", "content": f"{str(column(row, 'question')).strip()}\n{options}\n{self.ask}"}


class Mmlu(Choice):
    """57 subjects, 14,042 questions; ``mmlu:astronomy`` takes one subject."""

    name = "mmlu"
    source = Source(("mmlu",), "cais/mmlu", "cais/mmlu")
    splits = ("test",)
    ask = "Answer with the letter of the right choice alone."


class CEval(Choice):
    """52 subjects in Chinese; the answers of the split ``test`` are not published, so ``val`` is asked."""

    name = "ceval"
    source = Source(("ceval-exam", "ceval"), "ceval/ceval-exam", "ceval/ceval-exam")
    splits = ("val", "validation")
    ask = "只回答正确选项的字母。"


def letter_in(text: str) -> str | None:
    """The letter that an answer chooses: the one said to be the answer, else the first that stands alone."""
    said = re.search(r"(?i:answer|答案|选)[^A-Za-z\n]{0,12}(?i:is|:|：|为|是)?\s*[\(（*]*([A-D])(?![A-Za-z])", text)
    alone = re.search(r"(?<![A-Za-z'’])([A-D])(?![A-Za-z'’])", text)
    found = said or alone
    return found[1] if found else None


def _subject(row: dict[str, Any]) -> str:
    return str(row.get("subject") or row["_subset"])


def _choices(row: dict[str, Any]) -> list[str]:
    choices = row["choices"] if "choices" in row else [column(row, letter) for letter in LETTERS]
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise DataError(f"{row['_place']} has no four choices.", "Is it this benchmark?")
    return [str(choice) for choice in choices]


def _letter(row: dict[str, Any]) -> str:
    answer = column(row, "answer")
    letter = LETTERS[answer] if isinstance(answer, int) and 0 <= answer < len(LETTERS) else str(answer).strip().upper()
    if letter not in LETTERS or not letter:
        raise DataError(f"{row['_place']}: the answer {answer!r} is none of {', '.join(LETTERS)}.")
    return letter
