"""What the program says while it works: one place, so that it can be made quiet or sent to a file.

Data (an answer, a table asked for) goes to stdout; everything said on the way (notices, progress) to stderr.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from swiftune.runtime.launch import is_main_process

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


@functools.cache
def err() -> Console:
    """The console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


_said: set[str] = set()
_silent = False


def notice(text: str) -> None:
    """Says a thing worth knowing, once per process, on one line of stderr."""
    if _new(text):
        err().print(f"[cyan]note[/] {_escape(text)}")
        _record(text)


def warn(text: str) -> None:
    """Says a thing that may be a mistake, once per process, on one line of stderr."""
    if _new(text):
        err().print(f"[yellow]warning[/] {_escape(text)}")
        _record(text, warning=True)


def say(text: str, *, style: str | None = None) -> None:
    """Says what becomes of the work, on stderr."""
    err().print(text, style=style, markup=False)
    _record(text)


_BAR_AFTER = 2.0
"""Seconds from which on a progress bar is shown."""


def shown(doing: str, items: Iterable[T], total: int, size: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
    """The same items, with a progress bar where it takes long and a person looks on.

    Args:
        total: what there is to do.
        size: how much of it an item is.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=err(), transient=True)
    task = progress.add_task("", total=total)
    began = time.monotonic()
    try:
        for item in items:
            if err().is_terminal and time.monotonic() - began > _BAR_AFTER:
                progress.start()
            progress.advance(task, size(item))
            yield item
    finally:
        if progress.live.is_started:  # stopping what never began would print an empty line
            progress.stop()


def _record(text: str, *, warning: bool = False) -> None:
    from swiftune.runtime import log_file  # not earlier: ``--help`` has no log

    log_file.record(text, warning=warning)


def _new(text: str) -> bool:
    """Whether it is to be said here and now; if so, it is not again."""
    if text in _said or _silent or not is_main_process():
        return False
    _said.add(text)
    return True


@contextmanager
def silent() -> Iterator[None]:
    """Within it nothing is said."""
    global _silent
    _silent = True
    try:
        yield
    finally:
        _silent = False


@contextmanager
def hushed(beginning: str, category: type[Warning] = FutureWarning) -> Iterator[None]:
    """Keeps one warning of a library from the terminal: it is not for the user, or is said better elsewhere.

    Args:
        beginning: regular expression that the warning's text begins with.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", beginning, category)
        yield


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
