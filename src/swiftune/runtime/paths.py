"""Where Swiftune keeps what it can make again, and how a folder gets there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swiftune.errors import OutputError


def cache_dir() -> Path:
    """``$SWIFTUNE_CACHE``, or ``swiftune`` in the user's cache folder. Not created here."""
    if own := os.environ.get("SWIFTUNE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swiftune"


@contextmanager
def locked(name: str, doing: str) -> Iterator[None]:
    """Lets one process at a time make the thing called ``name``; the others wait, and say so.

    Args:
        doing: what is done meanwhile, for those who wait: "fetching the model X".

    Raises:
        OutputError: the cache folder cannot be written.
    """
    from filelock import FileLock, Timeout

    from swiftune.runtime.console import notice

    file = _lock_file(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notice(f"Another process is {doing}; waiting for it.")
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

    Hold ``locked(lock_of(target))`` around it. A process that is killed leaves a folder of another name, which the next
    one that stages anything beside it removes. All is on the disk before it gets its name: else a power cut could leave
    the name, and empty files.
    """
    _sweep(target.parent)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        sync(part, deep=True)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def lock_of(target: Path) -> str:
    """The name of the lock that whoever makes ``target`` holds."""
    return f"{target.parent.name}-{target.name}"


def sync(path: Path, *, deep: bool = False) -> None:
    """Returns once a file, or the names in a folder, and with ``deep`` all that is in it, are on the disk."""
    for each in [*(path.rglob("*") if deep else ()), path]:
        file = os.open(each, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _sweep(folder: Path) -> None:
    """Removes what nobody is making any more."""
    from filelock import FileLock, Timeout

    for part in folder.glob(".*.part"):
        target = folder / part.name.removeprefix(".").removesuffix(".part")
        with suppress(Timeout), FileLock(_lock_file(lock_of(target)), timeout=0):
            shutil.rmtree(part, ignore_errors=True)


def _lock_file(name: str) -> Path:
    return cache_dir() / "locks" / f"{name}.lock"
