"""One request at work: what it leaves open filled in, and its answer so far."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swiftune.errors import UsageError
from swiftune.generate.engine import Answer, FinishReason, Piece, Request, Token
from swiftune.generate.text_writer import TextWriter
from swiftune.runtime.console import notice

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

ENDLESS = 2048
"""Most new tokens where neither the request nor the model sets a limit."""


class Defaults:
    """What the model's own files say where a request says nothing.

    Args:
        stop_ids: tokens that end a turn (the renderer knows them), beside those of the model's generation_config.
    """

    def __init__(
        self, config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        eos = config.eos_token_id
        self.stop_ids = {*stop_ids, *([eos] if isinstance(eos, int) else eos or [])}

    def limit(self, request: Request, context: int | None) -> int:
        """Most tokens of the answer.

        Raises:
            UsageError: the prompt leaves no room.
        """
        prompt, asked = len(request.prompt_ids), request.sampling.max_new_tokens or self.config.max_new_tokens
        if context is None:
            return asked or ENDLESS
        room = context - prompt
        if room < 1:
            raise UsageError(
                f"A prompt of {prompt} tokens leaves no room for an answer: the model's context is {context}."
            )
        if asked and asked > room:
            notice(
                f"The model's context of {context} tokens leaves some answers fewer than the {asked} new tokens "
                "asked for."
            )
        return min(asked or room, room)

    def sampling(self, request: Request) -> dict[str, float]:
        """``temperature`` (0: greedy), ``top_k`` (0: all), ``top_p``, ``min_p`` and ``repetition_penalty``."""
        own, asked = self.config, request.sampling
        samples = own.do_sample or bool(asked.top_k) or (asked.top_p or 1.0) < 1.0
        temperature = asked.temperature if asked.temperature is not None else _first(own.temperature, 1.0) * samples
        penalty = _first(asked.repetition_penalty, own.repetition_penalty, 1.0)
        if temperature == 0:
            return {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": penalty}
        return {
            "temperature": temperature,
            "top_k": max(_first(asked.top_k, own.top_k, 50), 0),
            "top_p": _first(asked.top_p, own.top_p, 1.0),
            "min_p": _first(asked.min_p, own.min_p, 0.0),
            "repetition_penalty": penalty,
        }

    def marks(self, request: Request) -> set[int]:
        """The tokens that end the answer: those of the model, and stop words that are tokens of their own."""
        vocabulary = self.tokenizer.get_added_vocab()
        return self.stop_ids | {vocabulary[word] for word in request.sampling.stop if word in vocabulary}


class Writing:
    """A request, and its answer so far. Its clock starts when it is made.

    Raises:
        UsageError: the prompt leaves no room for an answer.
    """

    def __init__(self, request: Request, defaults: Defaults, context: int | None) -> None:
        self.request = request
        self.limit = defaults.limit(request, context)
        self.stop_ids = defaults.marks(request)
        self.sampling = defaults.sampling(request)
        seed = request.sampling.seed
        self.seed = random.SystemRandom().getrandbits(63) if seed is None else seed
        self.tokens: list[Token] = []
        self.finish: FinishReason | None = None
        self._text = TextWriter(defaults.tokenizer, request.sampling.stop)
        self._start = time.perf_counter()
        self._first = self._last = 0.0

    def take(self, tokens: Sequence[Token]) -> Piece:
        """Notes written tokens, up to the one that ends the answer; gives them with the text that is safe to show."""
        text, before = "", len(self.tokens)
        self._last = time.perf_counter() - self._start
        self._first = self._first or self._last
        for token in tokens:
            self.tokens.append(token)
            text += "" if token.id in self.stop_ids else self._text.take(token.id)
            if token.id in self.stop_ids or self._text.stopped:
                self.finish = "stop"
            elif len(self.tokens) >= self.limit:
                self.finish = "length"
            if self.finish:
                text += self._text.end()
                break
        return Piece(text, tuple(self.tokens[before:]))

    def answer(self) -> Answer:
        """The whole of it, once ``finish`` is set."""
        assert self.finish is not None
        return Answer(
            text=self._text.text,
            token_ids=[token.id for token in self.tokens],
            finish_reason=self.finish,
            prompt_tokens=len(self.request.prompt_ids),
            latency=self._last,
            first_token_latency=self._first,
            tokens=self.tokens if self.request.logprobs is not None else None,
        )


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)
