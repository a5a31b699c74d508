"""The folder of a run: ``output/v0-20261122-101500``, the next free number and the time."""

from __future__ import annotations

import re
import tempfile
from datetime import datetime
from pathlib import Path

from swiftune.errors import OutputError


def check(output_dir: Path) -> None:
    """Makes sure, before hours of other work, that runs can be put into ``output_dir``.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise _unwritable(output_dir, error) from error


def create(output_dir: Path, *, add_version: bool) -> Path:
    """Makes the run's folder, in a way that two runs started at once get two.

    Raises:
        OutputError: it cannot be made.
    """
    check(output_dir)
    try:
        return (_next(output_dir) if add_version else output_dir).absolute()
    except OSError as error:
        raise _unwritable(output_dir, error) from error


def _unwritable(output_dir: Path, error: OSError) -> OutputError:
    return OutputError(
        f"--output_dir {output_dir} cannot be written: {error.strerror or error}.", "Name another folder."
    )


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
