"""What became of each run of a sweep: read from its folder, which is the only record that there is of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from swiftune.config.swept import Run, less_is_better
from swiftune.train import run_log

OUTPUT = "terminal.log"
"""What the processes of a run have said, in its folder."""
State = Literal["waiting", "done", "failed", "interrupted"]


@dataclass
class Row:
    """A run, and what became of it."""

    run: Run
    folder: Path
    """In which its ``v0-…`` is, and its ``terminal.log``."""
    state: State = "waiting"
    reason: str = ""
    """Why it failed."""
    figures: dict[str, float] = field(default_factory=dict)

    def settle(self, metric: str) -> bool:
        """Fills in the figures, if the run has come to its end. Returns whether it has."""
        ended = newest(self.folder)
        if ended is None or not run_log.has_totals(ended):
            return False
        self.state, self.reason, self.figures = "done", "", figures_of(run_log.read(ended), metric)
        return True


def newest(folder: Path) -> Path | None:
    """The last training that was begun for a run, if there is one."""
    found = [(int(m[1]), path) for path in folder.glob("v*-*") if (m := re.match(r"v(\d+)-", path.name))]
    return max(found, default=(0, None))[1]


def figures_of(records: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """The figures of a run that has ended, under the names of its log.

    Those of an evaluation come from the one that was best by ``metric``, or by eval_loss; one before the first step
    does not count. ``memory(GiB)`` is the peak, ``acc`` the last one logged, ``tokens/s`` that of the whole run.
    """
    totals = records[-1]
    found: dict[str, Any] = {name: totals[name] for name in ("train_runtime", "train_loss") if name in totals}
    accuracies = [record["acc"] for record in records if "acc" in record]
    by = metric if metric.startswith("eval_") else "eval_loss"
    evaluations = [record for record in records if _number(record.get(by)) and run_log.step_of(record) > 0]
    if evaluations:
        best = (min if less_is_better(by) else max)(evaluations, key=lambda record: record[by])
        found |= {name: value for name, value in best.items() if name.startswith("eval_")}
    found |= {"acc": accuracies[-1]} if accuracies else {}
    found["memory(GiB)"] = max((record["memory(GiB)"] for record in records if "memory(GiB)" in record), default=0.0)
    found["tokens/s"] = totals.get("train_tokens_per_second", 0.0)
    return {name: float(value) for name, value in found.items() if _number(value)}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def best_of(rows: list[Row], metric: str) -> Row | None:
    """The run that ended with the best figure; the first of equals."""
    ended = [row for row in rows if row.state == "done" and metric in row.figures]
    pick = min if less_is_better(metric) else max
    return pick(ended, key=lambda row: row.figures[metric], default=None)


def reason_in(output: Path, code: int | None = None, *, offset: int = 0) -> str:
    """Why a run failed, in a line: the last error that it told from ``offset`` on, or how it ended."""
    told: list[str] = []
    if output.exists():
        with output.open("rb") as file:
            file.seek(offset)
            told = file.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("error:").strip() for line in told if line.startswith("error:")]
    if errors:
        return errors[0][:300]
    if code is not None and code < 0:
        memory = ", as Linux ends a process when memory runs out" if code == -9 else ""
        return f"it was ended by signal {-code}{memory}"
    last = next((line.strip() for line in reversed(told) if line.strip()), "")
    return last[:300] or f"it ended with exit code {code}"
