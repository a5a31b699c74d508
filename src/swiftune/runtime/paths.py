"""Where Swiftune keeps what it can make again, and how a folder gets there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swiftune.errors import OutputError


def cache_dir() -> Path:
    """``$SWIFTUNE_CACHE``, or ``swiftune`` in the user's cache folder. Not created here."""
    if own := os.environ.get("SWIFTUNE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swiftune"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Lets one process at a time make the thing called ``name``; the others wait, and say so.

    Raises:
        OutputError: the cache folder cannot be written.
    """
    from filelock import FileLock, Timeout

    from swiftune.runtime.console import notice

    file = cache_dir() / "locks" / f"{name}.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notice(f"Another process is fetching {name}; waiting for it.")
            lock.acquire()
    except OSError as error:
        raise OutputError(
            f"The cache folder {cache_dir()} cannot be written: {error.strerror or error}.",
            "Set SWIFTUNE_CACHE to a folder that can.",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` at the end of the block, or vanishes if the block raises.

    A process that is killed leaves a folder of another name, which the next one empties; so hold ``locked`` around it.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
