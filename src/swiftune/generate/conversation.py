"""A chat: its history, and how much of it fits the model's context."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from swiftune.data.ledger import RowFault
from swiftune.errors import UsageError
from swiftune.generate.engine import Engine, Request, Sampling
from swiftune.runtime.console import notice
from swiftune.types import Message

if TYPE_CHECKING:
    from swiftune.data.render import Renderer


class Conversation:
    """Asks, remembers what was said, and forgets the oldest rounds when there is no more room.

    Args:
        sampling: of every answer; the n-th answer is drawn with ``seed + n``.
        system: the system prompt; ``None`` leaves it to the renderer.
        max_prompt: most tokens of a prompt, where that is to be fewer than the context allows.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        sampling: Sampling,
        *,
        system: str | None = None,
        max_prompt: int | None = None,
    ) -> None:
        self._engine, self._renderer, self._sampling, self._max_prompt = engine, renderer, sampling, max_prompt
        self._system = system
        self._asked = 0
        self.messages: list[Message] = []
        """User and assistant in turn."""

    @property
    def system(self) -> str | None:
        """The system prompt. Setting it starts a new conversation."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        self._system = text
        self.clear()

    def clear(self) -> None:
        """Forgets what was said; the system prompt stays."""
        self.messages = []

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer, piece by piece. Leaving it early keeps what was written so far; a failure keeps nothing.

        Raises:
            UsageError: the question alone is too long, or the template refuses it.
        """
        question: Message = {"role": "user", "content": text}
        prompt = self._prompt(question)
        seed = None if self._sampling.seed is None else self._sampling.seed + self._asked
        self._asked += 1
        stream = self._engine.stream(Request(prompt, replace(self._sampling, seed=seed)))
        answer = ""
        try:
            for piece in stream:
                if piece.text:
                    answer += piece.text
                    yield piece.text
        except Exception:
            answer = ""
            raise
        finally:
            stream.close()
            if answer:
                self.messages += [question, {"role": "assistant", "content": answer}]

    def _prompt(self, question: Message) -> list[int]:
        """The ids of the conversation with ``question``, its oldest rounds dropped until they fit."""
        room, messages = self._room(), self.messages
        while True:
            try:
                ids = self._renderer.prompt([*self._opening(), *messages, question])
            except RowFault as fault:
                raise UsageError(f"This cannot be asked: {fault}.") from fault
            if room is None or len(ids) <= room:
                if messages is not self.messages:
                    notice(f"The conversation outgrows its room of {room} tokens: its oldest rounds are forgotten.")
                    self.messages = messages
                return ids
            if not messages:
                raise UsageError(f"This makes a prompt of {len(ids)} tokens; there is room for {room}.")
            messages = messages[2:]

    def _opening(self) -> list[Message]:
        return [] if self._system is None else [{"role": "system", "content": self._system}]

    def _room(self) -> int | None:
        """Most tokens of a prompt: the context without the answer, for which at most a quarter is kept free."""
        context = self._engine.context
        if context is None:
            return self._max_prompt
        room = context - max(1, min(self._sampling.max_new_tokens or context, context // 4))
        return min(room, self._max_prompt or room)
