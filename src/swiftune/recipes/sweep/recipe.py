"""``swift sweep``: the runs one after another, or so many at once, and after each the table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from swiftune.config.swept import Sweep, describe
from swiftune.errors import Interrupted, UsageError
from swiftune.recipes.sweep import picture, report
from swiftune.recipes.sweep.jobs import Job
from swiftune.recipes.sweep.rows import Row, newest
from swiftune.recipes.sweep.search import Search, choose
from swiftune.runtime import log_file
from swiftune.runtime.console import err, say
from swiftune.runtime.stop import StopRequest
from swiftune.train import run_folder
from swiftune.train.run_log import clock

LOCK = ".sweep.lock"


def run(sweep: Sweep) -> tuple[list[Row], Interrupted | None]:
    """Does all of a sweep that is left to do, and writes its table.

    Returns:
        The rows, and how it was interrupted, if it was: what was being trained then is saved.

    Raises:
        UsageError: the folder has another sweep, or another process is at it.
        MissingPackageError: a search without optuna.
    """
    folder = Path(sweep.options.output_dir)
    run_folder.check(folder, "--output_dir")
    with _held(folder):
        report.refuse_another(folder, sweep)
        search = choose(sweep, folder)
        return _in_folder(folder, sweep, search)


def _in_folder(folder: Path, sweep: Sweep, search: Search) -> tuple[list[Row], Interrupted | None]:
    with log_file.inside(folder):
        report.write(folder, sweep, search.known)
        rows, stop = _work(sweep, search, folder)
        picture.draw(folder, sweep, rows)
        if not stop:
            return rows, None
        done = sum(row.state == "done" for row in rows)
        interrupted = Interrupted(
            f"{done} of {search.count} runs are done; what was being trained is saved.",
            f"Go on with: {sweep.again}",
        )
        interrupted.exit_code = stop.exit_code
        return rows, interrupted


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / LOCK, timeout=0.5):
            yield
    except Timeout:
        raise UsageError(
            f"--output_dir {folder} is in use: another process runs a sweep in it.", "Wait for its end."
        ) from None


class _Work:
    """The runs that are under way, and what is told of them."""

    def __init__(self, sweep: Sweep, search: Search, folder: Path) -> None:
        self.sweep, self.search, self.folder = sweep, search, folder
        self.rows = search.known
        self.jobs: list[Job] = []
        self.trained = 0
        """Runs that this process has seen through."""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err(),
            disable=not err().is_terminal,
        )
        self.all = self.bar.add_task("runs", total=search.count)
        self.bars: dict[int, TaskID] = {}

    def begin(self, stop: StopRequest) -> bool:
        """Begins the next run, or takes it as done where it is. False where there is no more."""
        row = self.search.next()
        if row is None:
            return False
        if row not in self.rows:
            self.rows.append(row)
        run = newest(row.folder)
        if run and run_folder.is_alive(run):  # of a sweep that was killed
            say(f"{describe(row.run.values)}: an earlier process is still at it; waiting for its end.")
            while run_folder.is_alive(run) and not stop:
                pass  # it takes its time to look
        if stop:
            return False
        if row.settle(self.sweep.metric):
            self._settled(row, "was done before")
            return True
        places = {job.place for job in self.jobs}
        place = next(place for place in range(self.sweep.options.sweep_jobs) if place not in places)
        job = Job(row, self.sweep.command, place=place, jobs=self.sweep.options.sweep_jobs)
        if job.resumed:
            say(f"{describe(row.run.values)}: goes on from {job.resumed.name}")
        self.jobs.append(job)
        self.bars[id(job)] = self.bar.add_task(describe(row.run.values), total=None)
        return True

    def look(self) -> None:
        """Takes in the runs that have ended."""
        for job in [job for job in self.jobs if job.ended(self.sweep.metric)]:
            self.jobs.remove(job)
            self.bar.remove_task(self.bars.pop(id(job)))
            if job.row.state == "interrupted":
                say(f"{describe(job.row.run.values)}: interrupted")
                report.write(self.folder, self.sweep, self.rows)
                continue
            self._settled(job.row, f"in {clock(job.seconds)}")
            self.trained += 1
            left = self.search.count - sum(row.state in ("done", "failed") for row in self.rows)
            if self.trained == 1 and left:
                seconds = job.seconds * left / min(self.sweep.options.sweep_jobs, left)
                say(f"The other {left} take about {clock(seconds)}, if they take as long.")

    def _settled(self, row: Row, how: str) -> None:
        self.search.tell(row)
        self.bar.advance(self.all)
        report.write(self.folder, self.sweep, self.rows)
        values, metric = describe(row.run.values), self.sweep.metric
        if row.state == "failed":
            say(f"{values}: failed: {row.reason} (all it said: {row.folder / 'terminal.log'})", style="red")
        else:
            say(f"{values}: {how}, {metric} {report.cell(metric, row) or 'is missing'}")

    def show(self) -> None:
        """Says how far the runs are."""
        for job in self.jobs:
            text = f"{describe(job.row.run.values)}: {job.progress()}"
            self.bar.update(self.bars[id(job)], description=text)


def _work(sweep: Sweep, search: Search, folder: Path) -> tuple[list[Row], StopRequest]:
    jobs = sweep.options.sweep_jobs
    many = "one after another" if jobs == 1 else f"{jobs} at once"
    say(f"{search.count} runs of swift {sweep.command}, {many}, in {folder}. The best is the one by {sweep.metric}.")
    with StopRequest() as stop:
        work = _Work(sweep, search, folder)
        told, shown = False, time.monotonic()
        try:
            with work.bar:
                while True:
                    while not stop and len(work.jobs) < jobs and work.begin(stop):
                        pass
                    if not work.jobs:
                        break
                    time.sleep(0.1)
                    if stop and not told:
                        told = True
                        for job in work.jobs:
                            job.interrupt()
                    work.look()
                    if not work.bar.disable and time.monotonic() > shown + 1:
                        shown = time.monotonic()
                        work.show()
        finally:
            for job in work.jobs:
                job.interrupt()
                job.process.wait()
    return work.rows, stop
