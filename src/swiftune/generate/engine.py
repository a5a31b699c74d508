"""What every engine takes and gives: a prompt as tokens, and how to sample; a text, and why it ended."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


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


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered."""

    prompt_ids: Sequence[int]
    sampling: Sampling = Sampling()


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
    """Seconds from the start of the request's batch to this answer's last token."""
    first_token_latency: float
    """Seconds to its first token."""


class Stream:
    """An answer while it is written: iterate for pieces of text; then ``answer`` is the whole of it.

    Leaving the loop early, or ``close()``, stops the engine's work on it.
    """

    answer: Answer
    """Set when the last piece has been taken."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        try:
            self.answer = yield from self._pieces
        finally:
            self.close()

    def close(self) -> None:
        """Stops the answer where it is."""
        self._pieces.close()


class Engine(Protocol):
    """Answers prompts. A prompt that leaves no room for an answer raises UsageError."""

    @property
    def context(self) -> int | None:
        """Most tokens that a prompt and its answer may have together; ``None`` where the model sets no limit."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answers many requests, several at a time.

        Yields:
            The position of a request in ``requests`` and its answer, in the order in which they finish.
        """

    def stream(self, request: Request) -> Stream:
        """Answers one request piece by piece; the pieces together are the text that ``generate`` would give."""
