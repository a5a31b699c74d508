"""What a run says while it goes: one object a logged step in ``logging.jsonl``, the same figures on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from swiftune.runtime.console import err, warn

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
        self._unwritten = ""
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

    def begin(self) -> None:
        """Drops what a run left that was killed before its first checkpoint, in a folder that is used again."""
        if self.run is not None:
            (self.run / LOG).unlink(missing_ok=True)

    def go_on_from(self, step: int) -> None:
        """Drops what an interrupted run logged after ``step``, which is about to be done again."""
        self.bar.update(self.task, completed=step)
        if self.run is not None and (self.run / LOG).exists():
            kept = [r for r in read(self.run) if step_of(r) <= step and "train_runtime" not in r]
            beside = self.run / f".{LOG}.partial"
            beside.write_text("".join(_line(r) for r in kept), encoding="utf-8")
            beside.replace(self.run / LOG)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=step)

    def write(self, record: dict[str, Any], step: int) -> None:
        """Logs a record everywhere."""
        if self.run is None:
            return
        record = {key: float(f"{v:.8g}") if isinstance(v, float) else v for key, v in record.items()}
        self._append(self.run / LOG, _line(record))
        try:
            self.track({k: float(v) for k, v in record.items() if isinstance(v, int | float)}, step)
        except OSError as error:
            warn(f"The tracker's files cannot be written: {error.strerror or error}.")
        err().print(_for_people(record), markup=False)

    def _append(self, file: Path, line: str) -> None:
        """Writes a line, and those before it that could not be written: a disk that is full ends no run."""
        half, self._unwritten = self._unwritten, self._unwritten + line
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(f"\n{self._unwritten}" if half else line)  # what was last written may be half a line
            self._unwritten = ""
        except OSError as error:
            warn(f"{file} cannot be written: {error.strerror or error}. Its lines are written when they can be.")


def read(run: Path) -> list[dict[str, Any]]:
    """The records of a run's ``logging.jsonl``; none before the first is written.

    Lines that a kill or a full disk has left half written are passed over.
    """
    records = []
    with suppress(FileNotFoundError), (run / LOG).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(ValueError):
                records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def has_totals(run: Path) -> bool:
    """Whether a run's log says that it has come to its end."""
    records = read(run)
    return bool(records) and "train_runtime" in records[-1]


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
