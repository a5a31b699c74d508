"""A run of a sweep as a process of its own: ``python -m swiftune.cli.main sft …``, in a session of its own, so that
Ctrl-C in the terminal reaches it once, through the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from swiftune.config.swept import words_of
from swiftune.recipes.sweep.rows import OUTPUT, Row, newest, reason_in
from swiftune.runtime.launch import LAUNCHER
from swiftune.train import checkpoint_folder, run_log


class Job:
    """A run that is under way.

    Args:
        row: what becomes of it is written there.
        command: the name of the training command.
        place: number of this job among ``jobs`` that run at once.
    """

    def __init__(self, row: Row, command: str, *, place: int, jobs: int) -> None:
        self.row, self.place, self.began = row, place, time.monotonic()
        row.folder.mkdir(parents=True, exist_ok=True)
        self.resumed = checkpoint_in(row.folder)
        self.output = row.folder / OUTPUT
        self.offset = self.output.stat().st_size if self.output.exists() else 0
        own = {"output_dir": str(row.folder), "resume_from_checkpoint": "true" if self.resumed else None}
        if board := row.run.given.get("logging_dir"):
            own["logging_dir"] = str(Path(board) / row.run.name)
        words = [command, *words_of({**row.run.given, **own})]
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "swiftune.cli.main", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(place, jobs),
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Since it was begun."""
        return time.monotonic() - self.began

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)

    def ended(self, metric: str) -> bool:
        """Whether it has ended; then its row says how."""
        code = self.process.poll()
        if code is None:
            return False
        if not (code == 0 and self.row.settle(metric)):
            stopped = code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
            self.row.state = "interrupted" if stopped else "failed"
            self.row.reason = "" if stopped else reason_in(self.output, code, offset=self.offset)
        return True

    def progress(self) -> str:
        """How far it is, in a few words."""
        run = newest(self.row.folder)
        logged = [record for record in run_log.read(run) if "loss" in record] if run else []
        if not logged:
            return "starting"
        last = logged[-1]
        return f"step {last['global_step/max_steps']}, loss {last['loss']:.4g}, {last['remaining_time']} left"


def checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint from which a run can go on, if there is one: weights alone are not enough."""
    run = newest(folder)
    saved = checkpoint_folder.listing(run) if run else []
    return saved[-1][1] if saved and (saved[-1][1] / "optimizer.safetensors").exists() else None


def environment(place: int, jobs: int) -> dict[str, str]:
    """The environment of a job: it ends, saved, with the process of the sweep, and has its share of the machine."""
    own = {LAUNCHER: str(os.getpid()), "NO_COLOR": "1"}
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if jobs > 1 and len(devices) >= jobs:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(devices[place::jobs])
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        own["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return os.environ | own
