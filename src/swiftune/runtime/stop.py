"""Ctrl-C and SIGTERM: an exception that undoes what is half done, or a request that the loop looks at between steps.

Either way a second one ends the process at once: the system does it, whatever the process is doing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C."""


def exit_code(asked: KeyboardInterrupt) -> int:
    """128 plus the signal's number, as shells count it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(asked, Terminated) else signal.SIGINT)


@contextmanager
def heeded() -> Iterator[None]:
    """Within it SIGINT raises KeyboardInterrupt, SIGTERM Terminated, and the next signal ends the process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heed()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGTERM) is _raise:  # else the process is about to end
            for number, handler in before.items():
                signal.signal(number, handler)


def heed() -> None:
    """Lets the next signal count as the first."""
    for number in SIGNALS:
        signal.signal(number, _raise)


@contextmanager
def unheard() -> Iterator[None]:
    """Holds signals back for its length, and from the processes that are started within it for good.

    Blocking them is not enough: a library's thread that does not block them would be given them, and Python's handler
    is then called in this one.
    """
    held: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handlers = {number: signal.signal(number, lambda given, _: held.append(given)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for given in held:
            signal.raise_signal(given)


def _raise(number: int, frame: FrameType | None) -> None:
    leave_at_the_next()
    _raise_outside_imports(Terminated if number == signal.SIGTERM else KeyboardInterrupt, frame)


def _raise_outside_imports(asked: type[KeyboardInterrupt], frame: FrameType | None) -> None:
    """Raises ``asked``, later if a module is being loaded: the C++ of one that cannot load, as PyTorch's, aborts."""
    if not _imports(frame):
        raise asked
    signal.signal(signal.SIGALRM, lambda _, later: _raise_outside_imports(asked, later))
    signal.setitimer(signal.ITIMER_REAL, 0.02)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def leave_at_the_next() -> None:
    """Gives the next signal to the system, which ends the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if os.isatty(2):  # a progress bar hides the cursor, and would not get to show it again
        os.write(2, b"\x1b[?25h")


def say_from_handler(text: str) -> None:
    """Says it past the console: the handler may run in the middle of one of its lines."""
    os.write(2, f"\n{text}\n".encode())


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only sets ``signal``.

    Attributes:
        signal: the signal that asked to stop, or ``None``.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.signal is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells count it: 130 for Ctrl-C, 143 for SIGTERM."""
        assert self.signal is not None
        return 128 + self.signal

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        leave_at_the_next()
        say_from_handler("Stopping after this step; once more leaves at once.")
