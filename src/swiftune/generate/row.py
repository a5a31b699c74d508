"""A request at work: its tokens, its text, its place, and who is told."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swiftune.generate.engine import Answer, FinishReason, Piece, Token
from swiftune.generate.sampling import Chooser
from swiftune.generate.text_writer import TextWriter

Sink = Callable[[Piece | Answer | BaseException], None]


@dataclass(eq=False)
class Row:
    """A request at work.

    Attributes:
        limit: most tokens of the answer.
        adapter: the adapter's name, or ``BASE``.
        tell: is given the pieces, and then the answer or what went wrong.
        held: what the runner keeps of the request; ``None`` before its turn.
    """

    prompt: list[int]
    limit: int
    chooser: Chooser
    stop_ids: frozenset[int]
    writer: TextWriter
    adapter: str
    tell: Sink
    held: Any = None
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: FinishReason | None = None
    cancelled: bool = False
    submitted: float = 0.0
    """When its time began to count; 0: when it is taken in."""
    _first: float = 0.0
    _told: int = 0

    @property
    def all_ids(self) -> list[int]:
        """Prompt and answer so far."""
        return self.prompt + self.ids

    @functools.cached_property
    def prompt_array(self) -> np.ndarray:
        """The prompt, as it is compared with others."""
        return np.asarray(self.prompt)

    def cancel(self) -> None:
        """Nobody waits for the rest."""
        self.cancelled = True

    def take(self, token: Token) -> list[Piece | Answer]:
        """Notes a written token. Returns what there is to be told."""
        self.ids.append(token.id)
        self.tokens.append(token)
        self._first = self._first or time.perf_counter()
        ends = token.id in self.stop_ids
        text = "" if ends else self.writer.take(token.id)
        if ends or self.writer.stopped:
            self.finish = "stop"
        elif len(self.ids) >= self.limit:
            self.finish = "length"
        text += self.writer.end() if self.finish else ""
        if not text and not self.finish:
            return []
        piece = Piece(text, tuple(self.tokens[self._told :]))
        self._told = len(self.tokens)
        return [piece, self._answer()] if self.finish else [piece]

    def _answer(self) -> Answer:
        assert self.finish is not None
        return Answer(
            self.writer.text,
            self.ids,
            self.finish,
            len(self.prompt),
            time.perf_counter() - self.submitted,
            self._first - self.submitted,
            self.tokens if self.chooser.logprobs is not None else None,
        )
