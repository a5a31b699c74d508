"""Writing to the disk beside training: one thread, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Background:
    """Does one thing at a time in a thread of its own. Leaving the context waits for the last.

    What goes wrong in the thread is raised where it is waited for.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._last: Future[None] | None = None
        self._later: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Starts ``work`` once what was started before is done."""
        self.wait()
        self._last = self._pool.submit(work)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Has ``work`` done after what was started. ``wait`` does not wait for it, only the end of the context does."""
        self._later = self._pool.submit(work)

    def wait(self) -> None:
        """Waits until what was started is done."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()
            if self._later is not None:
                self._later.result()
