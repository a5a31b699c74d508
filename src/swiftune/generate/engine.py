"""What every engine takes and gives: a prompt as tokens, and how to sample; a text, and why it ended."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]
BASE = ""
"""The name of no adapter: the model as it is without any."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen and when an answer ends.

    ``None`` takes what the model's own ``generation_config`` says, and what Transformers says where that is silent.
    """

    max_new_tokens: int | None = None
    """``None``: as many as the model's context has room for."""
    temperature: float | None = None
    """0 takes the likeliest token at every step."""
    top_p: float | None = None
    top_k: int | None = None
    """0 keeps all tokens."""
    repetition_penalty: float | None = None
    """Of tokens in the prompt and in the answer so far; 1 is none (arXiv:1909.05858, section 4.1)."""
    stop: tuple[str, ...] = ()
    """Words that end the answer. They are not part of its text."""
    seed: int | None = None
    """The same seed gives the same answer, whichever requests are worked on at the same time."""
    min_p: float | None = None
    """Tokens less likely than this share of the likeliest one are left out."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the answer has so far."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for every time that the answer has it so far."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to the logit of each."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered."""

    prompt_ids: Sequence[int]
    sampling: Sampling = Sampling()
    adapter: str | None = None
    """A loaded adapter's name; ``BASE`` for none; ``None`` for what the engine was started with."""
    logprobs: int | None = None
    """0 or more: log-probabilities of each written token and of so many likeliest ones at its place."""


@dataclass(frozen=True, slots=True)
class Token:
    """One written token. Log-probabilities are the model's own: before temperature, penalties and truncation."""

    id: int
    logprob: float | None = None
    """``None`` where the request asks for none."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place with their log-probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text that has become safe to show, and the tokens written since the last piece."""

    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request."""

    text: str
    token_ids: list[int]
    """All tokens that the model wrote, those of the stop word and the end-of-turn token included."""
    finish_reason: FinishReason
    """``stop``: the model ended its turn or wrote a stop word; ``length``: there was no room for more tokens."""
    prompt_tokens: int
    latency: float
    """Seconds from the request's submission to this answer's last token."""
    first_token_latency: float
    """Seconds to its first token."""
    tokens: list[Token] | None = None
    """``token_ids`` with their log-probabilities, where the request asks for them."""


class Stream:
    """An answer while it is written: iterate for its pieces, with ``for`` or ``async for``; then ``answer`` is whole.

    One reader, in any thread or event loop. Leaving the loop early, or ``close()``, stops the engine's work on it.

    Args:
        cancel: tells the engine that nobody wants the rest.
    """

    answer: Answer
    """Set when the last piece has been taken."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._items: deque[Piece | Answer | BaseException] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], None] | None = None
        self._ended = False

    # -- the engine's side -------------------------------------------------------------------------------------------

    def put(self, item: Piece | Answer | BaseException) -> None:
        """Hands the reader the next piece; or the end of it: the answer, or what went wrong."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()
            if self._wake is not None:
                self._wake()

    # -- the reader's side -------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Piece]:
        try:
            while not self._ended:
                with self._changed:
                    self._changed.wait_for(lambda: self._items)
                    item = self._items.popleft()
                if (piece := self._piece(item)) is not None:
                    yield piece
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ready.set)

        with self._changed:
            self._wake = wake
            if self._items:
                ready.set()
        try:
            while not self._ended:
                await ready.wait()
                ready.clear()
                while self._items and not self._ended:
                    if (piece := self._piece(self._items.popleft())) is not None:
                        yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Stops the answer where it is. May be called again."""
        if not self._ended:
            self._ended = True
            self._cancel()
        self._wake = None

    def _piece(self, item: Piece | Answer | BaseException) -> Piece | None:
        if isinstance(item, Piece):
            return item
        self._ended = True
        if isinstance(item, BaseException):
            raise item
        self.answer = item
        return None


class Engine(Protocol):
    """Answers prompts. May be called from several threads at once.

    A prompt that leaves no room for an answer, or an unknown adapter, raises UsageError.
    """

    @property
    def context(self) -> int | None:
        """Most tokens that a prompt and its answer may have together; ``None`` where the model sets no limit."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answers many requests, several at a time.

        Yields:
            The position of a request in ``requests`` and its answer, in the order in which they finish.
        """

    def stream(self, request: Request) -> Stream:
        """Answers one request piece by piece; the pieces together are the text that ``generate`` would give.

        Returns at once, when the work has begun or waits for its turn.
        """

    def load_adapter(self, name: str, path: Path) -> None:
        """Loads an adapter, while requests are answered.

        Raises:
            AdapterError: it is none, or does not fit the model; or the name is taken.
        """

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter, once the requests that use it have ended.

        Raises:
            AdapterError: there is none of that name.
        """

    def load(self) -> tuple[int, int]:
        """How many requests are worked on, and how many wait for their turn.

        Raises:
            EngineEndedError: there will be no more answers.
        """

    def close(self) -> None:
        """Ends what runs, with an error to its readers, and frees what the engine holds. May be called again."""
