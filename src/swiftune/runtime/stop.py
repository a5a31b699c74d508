"""Ctrl-C and SIGTERM as a request that the work under way looks at, so that it can end at a whole step."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only sets ``signal``; a second one leaves at once.

    Attributes:
        signal: the signal that asked to stop, or ``None``.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells count it: 130 for Ctrl-C, 143 for SIGTERM."""
        assert self.signal is not None
        return 128 + self.signal

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        # Not the console: the handler may run in the middle of one of its lines.
        os.write(2, b"\nStopping after this step; once more leaves at once.\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
