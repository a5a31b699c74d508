"""Continuous batching: who is worked on in the next pass of the model.

One thread runs the model while there is work. In every pass each request that is being answered gets its next token,
and prompts that have just come get computed with what time is left, in parts: a pass is to take no longer than
``PASS_SECONDS``, so that a long prompt holds nobody up. The prompt that came first gets half of that at least, the
shortest ones the rest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from swiftune.errors import EngineEndedError
from swiftune.generate.engine import Answer, Piece
from swiftune.generate.row import Row
from swiftune.generate.runners import Runner, Work
from swiftune.generate.sampling import choose
from swiftune.runtime import hardware

PASS_SECONDS = 0.2
"""Longest that a pass over parts of prompts is meant to take; other requests wait for their next token so long."""
FIRST_CHUNK = 128
"""Tokens of prompts in a pass before any has been timed."""
T = TypeVar("T")


class Scheduler:
    """Works on requests until they are answered, in a thread of its own that lives as long as there is work.

    Args:
        most: requests worked on at the same time.
        within: a context for the thread, around all its work: autocast, say.
    """

    def __init__(
        self,
        runner: Callable[[], Runner],
        most: int,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._make_runner, self._most, self._within = runner, most, within
        self._runner: Runner | None = None
        self._lock = threading.Lock()
        self._waiting: deque[Row] = deque()
        self._jobs: deque[tuple[Callable[[Runner], object], Callable[[Row], bool], Future[object]]] = deque()
        self._running: list[Row] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._chunk = FIRST_CHUNK
        self._told: list[tuple[Row, Piece | Answer | BaseException]] = []
        """What the thread has to tell when it is time."""

    def submit(self, rows: Iterable[Row]) -> None:
        """Requests to be answered. Returns at once."""
        with self._lock:
            if self._closed:
                raise EngineEndedError("The engine is closed.")
            self._waiting.extend(rows)
            self._wake()

    def between(self, job: Callable[[Runner], T], unless: Callable[[Row], bool] = lambda _: False) -> T:
        """Does something between two passes, in the thread that runs the model, and waits for it.

        Args:
            unless: it waits as long as this is true of a request that is worked on or waits.
        """
        done: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise EngineEndedError("The engine is closed.")
            self._jobs.append((job, unless, done))  # type: ignore[arg-type]
            self._wake()
        return done.result()

    def load(self) -> tuple[int, int]:
        """How many requests are worked on, and how many wait."""
        with self._lock:
            if self._closed:
                raise EngineEndedError("The engine is closed.")
            return len(self._running), len(self._waiting)

    def close(self) -> None:
        """Ends everything: readers get an error. Waits for the pass that runs."""
        with self._lock:
            self._closed, thread = True, self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._runner is not None:
            self._runner.forget()

    def _wake(self) -> None:
        """Starts the thread where it is not running. With the lock held."""
        if self._thread is None:
            hardware.release_team()
            self._thread = threading.Thread(target=self._work, name="swiftune-engine", daemon=True)
            self._thread.start()

    # -- the thread --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _work(self) -> None:
        while True:
            try:
                with self._within():
                    self._runner = self._runner or self._make_runner()
                    with self._runner.serving():
                        self._until_idle(self._runner)
            except BaseException as error:  # nobody is to wait for a thread that has died
                self._give_up(error)
            # Only now is the model as it was: who gets the last answer may use it.
            with self._lock:
                if self._closed or not (self._waiting or self._jobs or self._running):
                    self._thread = None
            self._tell()
            if self._thread is not threading.current_thread():
                return

    def _until_idle(self, runner: Runner) -> None:
        """Passes until there is no work. What the last one leaves to be told is not told yet."""
        while True:
            self._do_jobs(runner)
            if self._closed:
                self._give_up(EngineEndedError("The engine was closed."))
            self._admit(runner)
            if self._running:
                self._tell()
                self._pass(runner)
            elif not self._jobs:
                return

    def _tell(self) -> None:
        told, self._told = self._told, []
        for row, item in told:
            if not row.cancelled:
                row.tell(item)

    def _do_jobs(self, runner: Runner) -> None:
        with self._lock:
            jobs, self._jobs = list(self._jobs), deque()
            rows = [*self._running, *self._waiting]
        for job, unless, done in jobs:
            if not self._closed and any(unless(row) for row in rows):
                self._jobs.append((job, unless, done))
                continue
            try:
                done.set_result(job(runner))
            except BaseException as error:
                done.set_exception(error)

    def _admit(self, runner: Runner) -> None:
        """Lets go who is cancelled, and takes in who waits, as far as there is room."""
        for row in [row for row in self._running if row.cancelled]:
            self._leave(runner, row)
        with self._lock:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            while self._waiting and len(self._running) < self._most:
                row = self._waiting.popleft()
                row.submitted = row.submitted or time.perf_counter()
                self._running.append(row)

    def _leave(self, runner: Runner, row: Row) -> None:
        with self._lock:
            self._running.remove(row)
        runner.end(row, keep=True)

    def _begins(self, runner: Runner, row: Row) -> bool:
        """Whether a row has its place now."""
        if row.held is not None:
            return True
        others = [other for other in self._running if other is not row]
        try:
            return runner.begin(row, others)
        except Exception as error:  # no memory, say: then it waits for others to end, if there are any
            runner.forget()
            if not any(other.held for other in others):
                self._fail(runner, row, error)
            return False

    def _plan(self, runner: Runner) -> list[Work]:
        """Who is worked on in the next pass, and how many tokens of each."""
        works: list[Work] = []
        prompts: list[tuple[Row, int]] = []
        for row in list(self._running):
            if not self._begins(runner, row):
                continue
            pending = len(row.prompt) + len(row.ids) - row.held.length
            if pending == 1 or not runner.cuts:
                works.append(Work(row, pending))
            else:
                prompts.append((row, pending))
        room = self._chunk
        if prompts:
            row, pending = prompts[0]
            works.append(Work(row, min(pending, room if len(prompts) == 1 else max(room // 2, 1))))
            room -= works[-1].count
        for row, pending in sorted(prompts[1:], key=lambda prompt: prompt[1]):
            if room > 0:
                works.append(Work(row, min(pending, room)))
                room -= works[-1].count
        return works

    def _pass(self, runner: Runner) -> None:
        began = time.perf_counter()
        works = self._plan(runner)
        for together in [works] if runner.cuts else [[work] for work in works]:
            self._compute(runner, together)
        self._learn(sum(work.count for work in works), time.perf_counter() - began)
        for row in [work.row for work in works if work.row.finish is not None]:
            self._leave(runner, row)

    def _learn(self, tokens: int, seconds: float) -> None:
        """Fits the size of a pass to the machine, from passes large enough to tell."""
        if tokens >= min(FIRST_CHUNK, self._chunk) // 2:
            wanted = int(tokens * PASS_SECONDS / max(seconds, 1e-6))
            self._chunk = min(max((self._chunk + wanted) // 2, 8), 4096)

    def _compute(self, runner: Runner, works: Sequence[Work]) -> None:
        """Where it fails, its halves by themselves: until it is known whose failure it is, or they fit the memory."""
        wanting = [work.row for work in works if work.wants]
        try:
            logits_NV = runner.run(works)
        except Exception as error:
            failure = error
        else:
            for row, token in zip(wanting, choose([row.chooser for row in wanting], logits_NV), strict=True):
                self._told += [(row, item) for item in row.take(token)]
            return
        if len(works) == 1:
            self._fail(runner, works[0].row, failure)
            return
        del failure  # with the frames that hold what was computed
        runner.forget()
        for half in (works[: len(works) // 2], works[len(works) // 2 :]):
            self._compute(runner, half)

    def _fail(self, runner: Runner, row: Row, error: BaseException) -> None:
        self._told.append((row, error))
        with self._lock:
            self._running.remove(row)
        runner.end(row, keep=False)

    def _give_up(self, error: BaseException) -> None:
        """Ends all requests with an error."""
        with self._lock:
            rows = [*self._running, *self._waiting]
            jobs, self._jobs = self._jobs, deque()
            self._running, self._waiting = [], deque()
        for row in rows:
            if self._runner is not None and row.held is not None:
                self._runner.end(row, keep=False)
            self._told.append((row, error))
        for _, _, done in jobs:
            done.set_exception(error)
