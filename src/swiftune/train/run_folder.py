"""The folder of a run: ``output/v0-20261122-101500``, the next free number and the time."""

from __future__ import annotations

import re
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from swiftune.errors import OutputError, UsageError


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


def create(output_dir: Path, *, add_version: bool) -> Path:
    """Makes the run's folder, in a way that two runs started at once get two.

    Raises:
        OutputError: it cannot be made.
    """
    check(output_dir, "--output_dir")
    return (_next(output_dir) if add_version else _unused(output_dir)).absolute()


def discard_unused(run: Path) -> None:
    """Removes what a run wrote that ended before its first step; whatever else is in the folder stays."""
    if (run / "logging.jsonl").exists() or any(run.glob("checkpoint-*")):
        return
    for name in ("args.json", "run.json", "set_aside.jsonl"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "runs", ignore_errors=True)
    if not any(run.iterdir()):
        run.rmdir()


def _unused(folder: Path) -> Path:
    """``folder``, if no run is in it: two runs in one could not be told apart."""
    if (folder / "logging.jsonl").exists() or list(folder.glob("checkpoint-*")):
        raise UsageError(
            f"--add_version false: there is a run in {folder} already.",
            "Name another --output_dir, or go on with it: --resume_from_checkpoint true.",
        )
    return folder


def _next(output_dir: Path) -> Path:
    taken = [int(m[1]) for p in output_dir.iterdir() if (m := re.fullmatch(r"v(\d+)-\d{8}-\d{6}", p.name))]
    number = max(taken, default=-1) + 1
    while True:
        run = output_dir / f"v{number}-{datetime.now():%Y%m%d-%H%M%S}"
        if not list(output_dir.glob(f"v{number}-*")):
            try:
                run.mkdir()
            except FileExistsError:
                pass
            else:
                return run
        number += 1
