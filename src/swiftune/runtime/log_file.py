"""The log of a run, ``run.log`` in its folder: with the time, what it said, and the traceback of what nobody expected.

What is said before there is a folder is held back until there is. A process other than the first writes
``run.<rank>.log``, and only tracebacks. Those of a command without a folder go to ``logs/`` in the cache. A log that
cannot be written disturbs nothing.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from swiftune import __version__
from swiftune.errors import Interrupted, SwiftuneError
from swiftune.runtime.launch import has_lost_peer
from swiftune.runtime.paths import cache_dir

KEPT = 20
"""Logs in the cache; older ones go."""


class _File(logging.Handler):
    """Holds records back while there is no file. It is open only while it is written: the folder may vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s"))
        self.path: Path | None = None
        self.held_back: deque[str] = deque(maxlen=1000)
        self.fault: Exception | None = None
        """What nobody expected, once its traceback is in the file."""

    def emit(self, record: logging.LogRecord) -> None:
        self.held_back.append(self.format(record) + "\n")
        if self.path is not None:
            with suppress(OSError):
                self.write_to(self.path)

    def write_to(self, path: Path) -> None:
        """Writes what was held back, and keeps it where that raises OSError."""
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(self.held_back)
        self.held_back.clear()


_logger = logging.getLogger("swiftune")
_logger.propagate = False
_logger.setLevel(logging.DEBUG)
_file = _File()
_logger.addHandler(_file)


@contextmanager
def of(words: Sequence[str]) -> Iterator[None]:
    """The log of ``swift`` with these words, and of the error that ends it."""
    global _file
    _logger.removeHandler(_file)
    _file = _File()
    _logger.addHandler(_file)
    record(f"{shlex.join(['swift', *_without_key(words)])} (swiftune {__version__}, process {os.getpid()})")
    of_threads, threading.excepthook = threading.excepthook, _of_thread
    try:
        yield
    except KeyboardInterrupt:
        record("interrupted")
        raise
    except SwiftuneError as error:
        _logger.log(logging.INFO if isinstance(error, Interrupted) else logging.ERROR, str(error))
        _logger.debug("raised here:", exc_info=error)
        raise
    finally:
        threading.excepthook = of_threads


def _without_key(words: Sequence[str]) -> list[str]:
    """The words of a command line, but for an API key: the log is sent with reports."""
    shown = [re.sub(r"^(--api[_-]key=).*", r"\1...", word) for word in words]
    return [
        "..." if before in ("--api_key", "--api-key") else word
        for before, word in zip(["", *shown], shown, strict=False)
    ]


def _of_thread(ended: threading.ExceptHookArgs) -> None:
    """What ends a thread that is a library's own, as a tracker's on a full disk. The program goes on without it."""
    from swiftune.runtime.console import warn

    error = ended.exc_value
    _logger.error("A thread of a library has ended:", exc_info=error)
    warn(f"A thread of a library has ended: {type(error).__name__}: {error}. The log has its traceback.")


def record(text: str, *, warning: bool = False) -> None:
    """Notes what the user is told."""
    _logger.log(logging.WARNING if warning else logging.INFO, text)


@contextmanager
def inside(run: Path) -> Iterator[None]:
    """From here on the log is in ``run``; within the context it takes a traceback that nobody expected, too."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        _file.setLevel(logging.CRITICAL)
    _file.path = run / ("run.log" if rank == "0" else f"run.{rank}.log")
    record(f"The run is in {run}.")
    try:
        yield
    except SwiftuneError:
        raise
    except Exception as error:
        if has_lost_peer(error):
            _logger.error("another process of this run has ended:", exc_info=error)
        else:
            fault(error)
        raise


def fault(error: Exception) -> Path | None:
    """Writes the traceback of an exception that nobody expected.

    Returns:
        The file that holds it, or ``None`` if none could be written.
    """
    if _file.fault is not error:
        _logger.critical("A fault of Swiftune:", exc_info=error)
        for own in (_file.path, None):
            with suppress(OSError):
                path = own or _in_cache()
                _file.write_to(path)
                _file.path, _file.fault = path, error
                return path
        return None
    return _file.path


def discard(run: Path) -> None:
    """Removes the log of a run that never began, unless it is there to explain a fault."""
    if _file.fault is None:
        _file.path = None
        (run / "run.log").unlink(missing_ok=True)


def _in_cache() -> Path:
    """A new file among the last ones in the cache."""
    folder = cache_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"))[: 1 - KEPT]:
        old.unlink(missing_ok=True)
    return folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
