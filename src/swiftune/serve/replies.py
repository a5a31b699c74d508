"""An engine's answers in the shapes that OpenAI's clients expect: whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from swiftune.generate.engine import Answer, Piece, Token
from swiftune.models.tokenizer import token_bytes
from swiftune.serve.errors import told
from swiftune.serve.tool_calls import CallReader

if TYPE_CHECKING:
    from swiftune.serve.service import Asked, Service

Json = dict[str, Any]


class Reply(ABC):
    """The answers to one request.

    Args:
        shown: how many likeliest tokens stand beside each written one; ``None`` for no log-probabilities.
    """

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, service: Service, asked: Asked, shown: int | None) -> None:
        self._service, self._asked, self._shown = service, asked, shown
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model.name,
        }

    async def whole(self) -> Json:
        """The response, when all answers are written."""
        answers = await asyncio.gather(*(self._finish(index) for index in range(len(self._asked.streams))))
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self._usage(answers)}

    async def events(self, include_usage: bool) -> AsyncIterator[str]:
        """The response as server-sent events. What goes wrong in the middle is told in one of them."""
        blank: Json = {"usage": None} if include_usage else {}
        try:
            answers: dict[int, Answer] = {}
            for index in range(len(self._asked.streams)):
                for choice in self._opening(index):
                    yield self._event([choice], blank)
            async for index, item in _merged(self._asked):
                if isinstance(item, Piece):
                    choices = self._delta(index, item)
                else:
                    answers[index] = self._service.finished(self._asked, index)
                    choices = self._closing(index, answers[index])
                for choice in choices:
                    yield self._event([choice], blank)
            if include_usage:
                yield self._event([], {"usage": self._usage(list(answers.values()))})
        except Exception as error:
            yield _data(told(error).body)
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[Json], more: Json) -> str:
        return _data({**self._head, "object": self.chunk_object, "choices": choices, **more})

    async def _finish(self, index: int) -> Answer:
        async for _ in self._asked.streams[index]:
            pass
        return self._service.finished(self._asked, index)

    def _usage(self, answers: Sequence[Answer]) -> Json:
        prompt, completion = self._asked.prompt_tokens, sum(len(answer.token_ids) for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _text(self, token: int) -> str:
        return str(self._service.tokenizer.decode([token], skip_special_tokens=False))

    @abstractmethod
    def _choice(self, index: int, answer: Answer) -> Json:
        """A whole answer."""

    def _opening(self, index: int) -> list[Json]:  # noqa: ARG002 - of a chat
        """What a stream begins with."""
        return []

    @abstractmethod
    def _delta(self, index: int, piece: Piece) -> list[Json]:
        """A piece of a stream."""

    @abstractmethod
    def _closing(self, index: int, answer: Answer) -> list[Json]:
        """What a stream ends with."""


class ChatReply(Reply):
    """Of /v1/chat/completions.

    Args:
        calls: whether calls of tools are looked for.
    """

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, asked: Asked, shown: int | None, calls: bool) -> None:
        super().__init__(service, asked, shown)
        self._readers = [CallReader(calls) for _ in asked.streams]

    def _choice(self, index: int, answer: Answer) -> Json:
        text = self._readers[index].take(answer.text)
        rest, calls = self._readers[index].end()
        message: Json = {"role": "assistant", "content": (text + rest) or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.tokens or ()),
            "finish_reason": "tool_calls" if calls else answer.finish_reason,
        }

    def _opening(self, index: int) -> list[Json]:
        return [_chunk(index, {"role": "assistant", "content": ""})]

    def _delta(self, index: int, piece: Piece) -> list[Json]:
        text, logprobs = self._readers[index].take(piece.text), self._logprobs(piece.tokens)
        return [_chunk(index, {"content": text}, logprobs=logprobs)] if text or logprobs else []

    def _closing(self, index: int, answer: Answer) -> list[Json]:
        rest, calls = self._readers[index].end()
        chunks = [_chunk(index, {"content": rest})] if rest else []
        if calls:
            numbered = [{"index": number, **call} for number, call in enumerate(calls)]
            chunks.append(_chunk(index, {"tool_calls": numbered}))
        return [*chunks, _chunk(index, {}, "tool_calls" if calls else answer.finish_reason)]

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        if self._shown is None or not tokens:
            return None
        content = [
            {**self._token(token.id, token.logprob), "top_logprobs": [self._token(*one) for one in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> Json:
        parts = token_bytes(self._service.tokenizer, token)
        return {"token": self._text(token), "logprob": _finite(logprob), "bytes": list(parts)}


class CompletionReply(Reply):
    """Of /v1/completions."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, service: Service, asked: Asked, shown: int | None) -> None:
        super().__init__(service, asked, shown)
        self._offsets = [0] * len(asked.streams)

    def _choice(self, index: int, answer: Answer) -> Json:
        return self._part(index, answer.text, answer.tokens or (), answer.finish_reason)

    def _delta(self, index: int, piece: Piece) -> list[Json]:
        shown = piece.text or (self._shown is not None and piece.tokens)
        return [self._part(index, piece.text, piece.tokens, None)] if shown else []

    def _closing(self, index: int, answer: Answer) -> list[Json]:
        return [self._part(index, "", (), answer.finish_reason)]

    def _part(self, index: int, text: str, tokens: Sequence[Token], finish: str | None) -> Json:
        logprobs = self._logprobs(index, tokens) if self._shown is not None and tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(self._text(token.id))
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{self._name(id_): _finite(logprob) for id_, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        """Its text; of a part of a character, OpenAI's ``bytes:\\xe4\\xbd``: no two parts are to look alike."""
        text, parts = self._text(token), token_bytes(self._service.tokenizer, token)
        return text if text.encode() == parts else "bytes:" + "".join(f"\\x{byte:02x}" for byte in parts)


async def _merged(asked: Asked) -> AsyncIterator[tuple[int, Piece | None]]:
    """The pieces of all streams as they come; ``None`` where a stream has ended."""
    if len(asked.streams) == 1:
        async for piece in asked.streams[0]:
            yield 0, piece
        yield 0, None
        return
    pieces: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue(len(asked.streams))

    async def read(index: int) -> None:
        try:
            async for piece in asked.streams[index]:
                await pieces.put((index, piece))
            await pieces.put((index, None))
        except Exception as error:
            await pieces.put((index, error))

    tasks = [asyncio.create_task(read(index)) for index in range(len(asked.streams))]
    left = len(tasks)
    try:
        while left:
            index, item = await pieces.get()
            if isinstance(item, BaseException):
                raise item
            left -= item is None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()


def _chunk(index: int, delta: Json, finish: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _finite(logprob: float | None) -> float:
    """JSON has no infinity."""
    return max(logprob if logprob is not None else 0.0, -9999.0)


def _data(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
