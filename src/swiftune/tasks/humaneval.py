"""HumanEval: 164 Python functions to be written from their docstrings (arXiv:2107.03374).

{"task_id": "HumanEval/53", "entry_point": "add",
 "prompt": "def add(x: int, y: int):\\n    \\"\\"\\"Add two numbers x and y …\\"\\"\\"\\n",
 "canonical_solution": "    return x + y\\n",
 "test": "def check(candidate):\\n    assert candidate(0, 1) == 1\\n …"}

The function is run against the tests in ``sandbox``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from swiftune.tasks import sandbox
from swiftune.tasks.benchmark_files import Source, column, rows_of
from swiftune.tasks.statistics import mean
from swiftune.tasks.task import Judged, Listed, Question, percent

SOURCE = Source(("humaneval", "openai_humaneval", "HumanEval"), "opencompass/humaneval", "openai/openai_humaneval")
_ASK = "Complete this Python function. Answer with the whole function, its imports included, in one block of code."
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BEYOND = re.compile(r"\n(?:class|def|#|if|print)")
"""Where a function that was only completed has ended (arXiv:2107.03374, section 2.1)."""


class HumanEval(Listed):
    """``pass@k``: the chance that of k programs at least one passes the tests."""

    name = "humaneval"
    figures = {"pass@1": mean}  # noqa: RUF012
    max_new_tokens = 512
    workers = os.cpu_count() or 1
    key = "humaneval 1"

    def __init__(self, place: Path, *, limits: sandbox.Limits | None = None) -> None:
        self._limits = limits
        super().__init__(
            [
                Question(
                    column(row, "task_id"),
                    [{"role": "user", "content": f"{_ASK}\n\n```python\n{column(row, 'prompt').strip()}\n```"}],
                    column(row, "canonical_solution"),
                    {name: column(row, name) for name in ("prompt", "test", "entry_point")},
                )
                for row in rows_of(place, ["test"])
            ]
        )

    def score(self, question: Question, answer: str) -> Judged:
        """100 if the program passes, else 0.

        Raises:
            RunError: programs cannot be run here.
        """
        row = question.row
        code = program(row["prompt"], answer, row["entry_point"])
        outcome = sandbox.run(f"{code}\n\n{row['test']}\n\ncheck({row['entry_point']})\n", self._limits)
        return Judged({"pass@1": percent(outcome.passed)}, outcome.why)


def program(prompt: str, answer: str, entry_point: str) -> str:
    """The code of an answer: its block with the whole function, else the prompt gone on with."""
    defines = re.compile(rf"^def {re.escape(entry_point)}\b", re.MULTILINE)
    blocks = _BLOCK.findall(answer)
    whole = next((text for text in (*blocks, answer) if defines.search(text)), None)
    if whole is None:
        return prompt + _BEYOND.split(blocks[0] if blocks else answer)[0]
    # What stands before the function in the prompt (imports, helpers) may be taken for granted by the answer.
    given = defines.search(prompt)
    return f"{prompt[: given.start()] if given else ''}\n{whole}"
