"""GSM8K: 1,319 sums from primary school, told as stories (arXiv:2110.14168).

{"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How …?",
 "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May. …\\n#### 72"}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swiftune.tasks.benchmark_files import Source, column, examples_of, rows_of
from swiftune.tasks.task import Judged, Listed, Question, percent
from swiftune.types import Message

SOURCE = Source(("gsm8k",), "AI-ModelScope/gsm8k", "openai/gsm8k")
SHOTS = 8
"""Worked examples before each question, as in arXiv:2201.11903: the first rows of the training split."""
_ASK = "Think step by step, and end with a line that has the answer as a number alone: #### 42"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_MARK = re.compile(r"####\s*(.+)")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


class Gsm8k(Listed):
    """The answer is right if ``math-verify`` finds it equal to the one behind ``####``."""

    name = "gsm8k"
    max_new_tokens = 512
    key = "gsm8k 1"

    def __init__(self, place: Path, *, subset: str | None = None, shots: int | None = None) -> None:
        subset = subset or (
            "main" if (place / "main").is_dir() else None
        )  # the other one, "socratic", has the same sums
        examples: list[Message] = []
        for row in examples_of(place, "train", subset, shots)[: SHOTS if shots is None else shots]:
            examples += [_user(row), {"role": "assistant", "content": worked(row["answer"])}]
        super().__init__(
            [
                Question(str(number), [*examples, _user(row)], worked(column(row, "answer")))
                for number, row in enumerate(rows_of(place, ["test"], subset))
            ]
        )

    def score(self, question: Question, answer: str) -> Judged:
        """100 or 0."""
        found, wanted = number_in(answer), number_in(question.reference)
        assert wanted is not None
        right = found is not None and equal(wanted, found)
        return Judged({"accuracy": percent(right)}, "" if right else f"read {found}, wanted {wanted}")


def worked(answer: str) -> str:
    """A published answer without the calculator's notes between ``<<`` and ``>>``."""
    return _CALCULATOR.sub("", answer)


def number_in(text: str) -> str | None:
    """The final answer of a text: behind the first ``####``, in the last ``\\boxed``, or its last number."""
    if marked := _MARK.search(text):
        numbers = _NUMBER.findall(marked[1])[:1]
    else:
        boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
        numbers = _NUMBER.findall(boxed[-1] if boxed else text)[-1:]
    return numbers[0].replace(",", "").replace("$", "") if numbers else None


def equal(wanted: str, found: str) -> bool:
    """Whether two numbers are equal, as ``math-verify`` sees it: 0.5 is 1/2, 7.0 is 7."""
    if wanted == found:
        return True
    import logging

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # its warning that it sets no alarm: these are short
    parsed: list[Sequence[Any]] = [parse(f"${number}$", parsing_timeout=None) for number in (wanted, found)]
    return bool(verify(*parsed, timeout_seconds=None))


def _user(row: dict[str, Any]) -> Message:
    return {"role": "user", "content": f"{column(row, 'question').strip()}\n\n{_ASK}"}
