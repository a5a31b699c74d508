"""What a run says while it goes: one object a logged step in ``logging.jsonl``, the same figures on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from swiftune.runtime.console import err

LOG = "logging.jsonl"


class RunLog:
    """The log of a run, and its progress bar.

    Args:
        run: the run's folder, or ``None`` in a process that is not the main one: then nothing is written or shown.
        steps: optimizer steps of the whole run.
        track: called with the values and the step, for TensorBoard and its like.
    """

    def __init__(self, run: Path | None, steps: int, track: Callable[[dict[str, float], int], None]) -> None:
        self.run, self.steps, self.track = run, steps, track
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=err(),
            disable=run is None or not err().is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps)

    def __enter__(self) -> RunLog:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def go_on_from(self, step: int) -> None:
        """Drops what an interrupted run logged after ``step``, which is about to be done again."""
        self.bar.update(self.task, completed=step)
        if self.run is not None and (self.run / LOG).exists():
            kept = [r for r in read(self.run) if step_of(r) <= step and "train_runtime" not in r]
            (self.run / LOG).write_text("".join(_line(r) for r in kept), encoding="utf-8")

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=step)

    def write(self, record: dict[str, Any], step: int) -> None:
        """Logs a record everywhere."""
        if self.run is None:
            return
        record = {key: float(f"{v:.8g}") if isinstance(v, float) else v for key, v in record.items()}
        with (self.run / LOG).open("a", encoding="utf-8") as file:
            file.write(_line(record))
        self.track({k: float(v) for k, v in record.items() if isinstance(v, int | float)}, step)
        err().print(_for_people(record), markup=False)


def read(run: Path) -> list[dict[str, Any]]:
    """The records of a run's ``logging.jsonl``; none before the first is written."""
    text = (run / LOG).read_text(encoding="utf-8") if (run / LOG).exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def step_of(record: dict[str, Any]) -> int:
    """The step at which a record was written."""
    return int(record["global_step/max_steps"].split("/")[0])


def clock(seconds: float) -> str:
    """Seconds as people say them: ``58s``, ``3m 20s``, ``2h 5m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m {rest}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60}m"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _for_people(record: dict[str, Any]) -> str:
    return "  ".join(f"{key}: {f'{v:.6g}' if isinstance(v, float) else v}" for key, v in record.items())
