"""The folder of a run: ``output/v0-20261122-101500``, the next free number and the time.

The process that trains in it holds the lock ``.lock`` in it. The kernel lets go of it when that process ends, however
it ends, so a run that was killed is never taken for one that goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from swiftune.errors import OutputError, UsageError
from swiftune.runtime import log_file
from swiftune.train.run_log import has_totals

LOCK = ".lock"
_PATIENCE = 0.5
"""Seconds in which a process has to let go of the lock that only looks whether the run is alive."""


def check(folder: str | Path, flag: str) -> None:
    """Makes sure, before hours of other work, that ``folder``, which ``flag`` names, can be written to.

    Raises:
        OutputError: it cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{flag} {folder} cannot be written: {error.strerror or error}.", "Name another folder."
        ) from error


@contextmanager
def begun(output_dir: Path, *, add_version: bool) -> Iterator[Path]:
    """The folder of a new run, held. Two runs that are started at once get one each.

    Raises:
        OutputError: it cannot be made.
        UsageError: without ``add_version`` there is one folder, and a run is in it.
    """
    check(output_dir, "--output_dir")
    run = (_next(output_dir) if add_version else output_dir).absolute()
    with held(run):
        if not add_version:
            _refuse_used(run)
        yield run


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Within it no other process can hold ``run``. What a run that never began wrote is removed at the end.

    Raises:
        UsageError: another process trains in it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run / LOCK)
    try:  # from before it is acquired: an interrupt just after would leave its file
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise _taken(run) from None
        except OSError as error:
            raise OutputError(f"{run} cannot be written: {error.strerror or error}.", "Name another folder.") from error
        with suppress(OSError):  # the number only serves a message
            (run / LOCK).write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        if lock.is_locked:
            _discard_unused(run)
            (run / LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # it is not empty
                run.rmdir()


def refuse_alive(run: Path) -> None:
    """Raises UsageError if a process trains in ``run``."""
    if is_alive(run):
        raise _taken(run)


def is_alive(run: Path) -> bool:
    """Whether a process, be it this one, trains in ``run``."""
    from filelock import FileLock, Timeout

    if not (run / LOCK).exists():
        return False
    try:
        with FileLock(run / LOCK, timeout=_PATIENCE):
            return False
    except Timeout:
        return True


def _taken(run: Path) -> UsageError:
    try:
        number = (run / LOCK).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        number = ""
    who = f"process {number}" if number else "another process"
    return UsageError(f"{run} is in use: {who} trains in it.", "Wait for its end, or begin another run.")


def _discard_unused(run: Path) -> None:
    """Removes what a run wrote that ended before its first step; whatever else is in the folder stays."""
    if is_used(run):
        return
    for name in ("args.json", "run.json", "set_aside.jsonl"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "runs", ignore_errors=True)
    log_file.discard(run)


def is_used(run: Path) -> bool:
    """Whether training has begun in ``run``."""
    return (run / "logging.jsonl").exists() or any(run.glob("checkpoint-*"))


def _refuse_used(folder: Path) -> None:
    """Raises UsageError if a run is in ``folder`` that has come to a checkpoint or to its end."""
    if any(folder.glob("checkpoint-*")) or has_totals(folder):
        raise UsageError(
            f"--add_version false: there is a run in {folder} already.",
            "Name another --output_dir, or go on with it: --resume_from_checkpoint true.",
        )


def _next(output_dir: Path) -> Path:
    """Makes the folder of the next free number.

    Making a folder is the one thing that only one of several processes can succeed in, whatever the file system. So
    ``.v3`` is made first, which is the right to be number 3, if there is none yet.
    """
    taken = [int(m[1]) for p in output_dir.iterdir() if (m := re.fullmatch(r"v(\d+)-\d{8}-\d{6}", p.name))]
    number = max(taken, default=-1) + 1
    while True:
        claim, run = output_dir / f".v{number}", output_dir / f"v{number}-{datetime.now():%Y%m%d-%H%M%S}"
        try:
            claim.mkdir()
        except FileExistsError:
            pass
        else:
            if not any(output_dir.glob(f"v{number}-*")):
                return claim.rename(run)
            claim.rmdir()
        number += 1
