"""A metric that the user wrote: ``--metric my.py:function``.

def brevity(answer: str, reference: str, messages: list[dict]) -> float:
    return 100.0 * (len(answer) <= 2 * len(reference))
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiftune.errors import RunError, UsageError
from swiftune.tasks.task import Judged, Question


@dataclass(frozen=True)
class OwnMetric:
    """A function of the user's as a metric, whose figure has the function's name."""

    name: str
    key: str
    """Changes with the file."""
    function: Callable[[str, str, list[Any]], Any]

    @classmethod
    def load(cls, text: str) -> OwnMetric:
        """From ``file.py:function``.

        Raises:
            UsageError: there is no such file or function, or the file cannot be run.
        """
        place, _, name = text.rpartition(":")
        path = Path(place).expanduser()
        if not path.is_file():
            raise UsageError(f"--metric {text}: there is no file {path}.", "Write it as file.py:function.")
        spec = importlib.util.spec_from_file_location(f"swiftune_metric_{path.stem}", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UsageError(f"--metric {text}: {path} cannot be run: {type(error).__name__}: {error}.") from error
        function = getattr(module, name, None)
        if not callable(function):
            there = ", ".join(each for each, value in vars(module).items() if callable(value) and each[0] != "_")
            raise UsageError(f"--metric {text}: {path} has no function {name}.", f"It has: {there or 'none'}.")
        return cls(name, hashlib.sha256(path.read_bytes()).hexdigest()[:16], function)

    def __call__(self, question: Question, answer: str) -> Judged:
        """The function's number.

        Raises:
            RunError: the function raised an exception, or gave no number.
        """
        where = f"--metric {self.name}, question {question.id} ({question.row.get('place', '')})"
        try:
            value = self.function(answer, question.reference, question.messages)
        except Exception as error:
            raise RunError(f"{where}: it raised {type(error).__name__}: {error}.") from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RunError(f"{where}: it gave {value!r}, which is no number.")
        return Judged({self.name: [float(value)]})
