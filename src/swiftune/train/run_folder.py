"""The folder of a run: ``output/v0-20261122-101500``, the next free number and the time."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from swiftune.errors import OutputError


def create(output_dir: Path, *, add_version: bool) -> Path:
    """Makes the run's folder, in a way that two runs started at once get two.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        run = _next(output_dir) if add_version else output_dir
        probe = run / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"--output_dir {output_dir} cannot be written: {error.strerror or error}.", "Name another folder."
        ) from error
    return run.absolute()


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
