"""From a request to streams of an engine: names of models, prompts, limits, the queue, the cache.

All of it runs in the event loop's thread, but for rendering (a thread of its own, one at a time).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from swiftune.errors import AdapterError
from swiftune.generate.engine import Answer, Engine, Piece, Request, Sampling, Stream
from swiftune.serve.errors import ApiError, wrong
from swiftune.serve.metrics import Metrics
from swiftune.serve.schema import AnswerRequest, ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swiftune.data.render import Renderer

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """See ``LimitArguments``."""

    max_answer_tokens: int = 4096
    max_n: int = 8
    max_stop_words: int = 16
    max_logprobs: int = 20
    max_queue: int = 64
    max_prompt: int | None = None
    max_running: int = 16
    max_body_bytes: int = 2 << 20
    stall_seconds: float = 30
    response_cache: int = 0


@dataclass(frozen=True, eq=False)
class Model:
    """Something that can be asked for by name."""

    name: str
    adapter: str | None
    """The engine's name for it; ``None``: what the engine was started with."""
    renderer: Renderer
    """Renders chats as this model's training did."""
    folder: str
    """Where it came from, for people."""
    parent: str | None = None


@dataclass(eq=False)
class Remembered:
    """An answer of the cache, to be read like a stream."""

    answer: Answer

    async def __aiter__(self) -> AsyncIterator[Piece]:
        yield Piece(self.answer.text, tuple(self.answer.tokens or ()))

    def close(self) -> None:
        """Nothing runs."""


@dataclass(eq=False)
class Asked:
    """A request at work."""

    model: Model
    prompt_tokens: int
    """Of all prompts, each counted once, however many answers it gets."""
    streams: list[Stream | Remembered] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    """Of each stream for the cache; ``None`` where its answer is not to be remembered."""

    def close(self) -> None:
        """Stops what is still being written."""
        for stream in self.streams:
            stream.close()


class Service:
    """The models of one engine, by name.

    Args:
        models: the first one is asked where a request names none.
        tokenizer: of the model; not shared with the engine, whose thread uses its own.
        default: how answers are drawn where a request does not say.
        vocabulary: ids below this are tokens.
    """

    def __init__(
        self,
        engine: Engine,
        models: Sequence[Model],
        tokenizer: PreTrainedTokenizerBase,
        *,
        limits: Limits,
        default: Sampling,
        vocabulary: int,
    ) -> None:
        self.engine, self.tokenizer, self.limits = engine, tokenizer, limits
        self.models = {model.name: model for model in models}
        self.metrics = Metrics(engine.load)
        self._first, self._default, self._vocabulary = models[0], default, vocabulary
        self._renders = ThreadPoolExecutor(1, "swiftune-render")
        self._cache: OrderedDict[Any, Answer] = OrderedDict()

    def model(self, name: str | None) -> Model:
        """The model of that name.

        Raises:
            ApiError: 404.
        """
        if name is None:
            return self._first
        if name not in self.models:
            raise ApiError(
                404, f"There is no model {name[:64]!r}; see /v1/models.", param="model", code="model_not_found"
            )
        return self.models[name]

    async def chat(self, request: ChatRequest) -> Asked:
        """Begins the answers to a chat.

        Raises:
            ApiError, SwiftuneError: it cannot be answered, or not now.
        """
        model = self.model(request.model)
        messages, tools = [message.plain() for message in request.messages], request.offered
        ids = await self._off_the_loop(lambda: model.renderer.prompt(messages, tools))
        return self._ask(model, request, [ids], request.likeliest)

    async def complete(self, request: CompletionRequest) -> Asked:
        """Begins the answers to prompts that are texts or tokens. Raises: see ``chat``."""
        model = self.model(request.model)
        self._check_count(len(request.prompt) * (request.n or 1))
        prompts = await self._off_the_loop(lambda: [self._ids(prompt) for prompt in request.prompt])
        return self._ask(model, request, prompts, request.likeliest)

    async def add(self, model: Model, path: Path) -> None:
        """Loads an adapter.

        Raises:
            AdapterError: see ``Engine.load_adapter``.
        """
        assert model.adapter is not None
        await asyncio.get_running_loop().run_in_executor(None, self.engine.load_adapter, model.adapter, path)
        self.models[model.name] = model

    async def remove(self, name: str) -> None:
        """Forgets an adapter and what is remembered of it.

        Raises:
            ApiError: 404.
            AdapterError: the model is no adapter.
        """
        model = self.model(name)
        if not model.adapter:
            raise AdapterError(f"{name} is not an adapter that can be unloaded.")
        del self.models[name]
        for key in [key for key in self._cache if key[0] is model]:
            del self._cache[key]
        await asyncio.get_running_loop().run_in_executor(None, self.engine.unload_adapter, model.adapter)

    def finished(self, asked: Asked, index: int) -> Answer:
        """Takes account of a stream that has ended, and gives its answer."""
        stream, key = asked.streams[index], asked.keys[index]
        answer = stream.answer
        if isinstance(stream, Remembered):
            return answer
        self.metrics.prompt_tokens.inc(answer.prompt_tokens)
        self.metrics.answer_tokens.inc(len(answer.token_ids))
        self.metrics.first_token.observe(answer.first_token_latency)
        self.metrics.answer.observe(answer.latency)
        if key is not None and self.models.get(asked.model.name) is asked.model:
            self._cache[key] = answer
            while len(self._cache) > self.limits.response_cache:
                self._cache.popitem(last=False)
        return answer

    def close(self) -> None:
        """Ends the thread that renders."""
        self._renders.shutdown(wait=False, cancel_futures=True)

    def _ask(self, model: Model, request: AnswerRequest, prompts: list[list[int]], logprobs: int | None) -> Asked:
        n = request.n or 1
        self._check(request, len(prompts) * n, logprobs)
        for ids in prompts:
            self._check_length(len(ids))
        sampling = request.sampling(self._default, self._vocabulary, self.limits.max_answer_tokens)
        asked = Asked(model, sum(map(len, prompts)))
        try:
            for ids in prompts:
                for index in range(n):
                    seed = None if sampling.seed is None else (sampling.seed + index) % 2**63
                    own = Request(ids, replace(sampling, seed=seed), model.adapter, logprobs)
                    stream, key = self._begin(model, own)
                    asked.streams.append(stream)
                    asked.keys.append(key)
        except BaseException:
            asked.close()
            raise
        return asked

    def _begin(self, model: Model, request: Request) -> tuple[Stream | Remembered, Any]:
        """A stream, or what the cache remembers; and the key under which the answer is to be remembered."""
        if not self.limits.response_cache or request.sampling.temperature != 0:
            return self.engine.stream(request), None
        key = (model, tuple(request.prompt_ids), replace(request.sampling, seed=None), request.logprobs)
        answer = self._cache.get(key)
        self.metrics.cache.labels("no" if answer is None else "yes").inc()
        if answer is None:
            return self.engine.stream(request), key
        self._cache.move_to_end(key)
        return Remembered(answer), None

    def _check(self, request: AnswerRequest, answers: int, logprobs: int | None) -> None:
        limits = self.limits
        self._check_count(answers)
        if len(request.stop_words) > limits.max_stop_words:
            raise wrong(f"stop has {len(request.stop_words)} texts; {limits.max_stop_words} may be given.", "stop")
        if (logprobs or 0) > limits.max_logprobs:
            raise wrong(f"{logprobs} log-probabilities at a token are asked for; {limits.max_logprobs} may be.")
        if (request.longest or 0) > limits.max_answer_tokens:
            raise wrong(f"{request.longest} tokens are asked for; {limits.max_answer_tokens} may be.", "max_tokens")
        running, waiting = self.engine.load()
        free = max(limits.max_running - running, 0)
        if waiting + answers > limits.max_queue + free:
            message = f"{running} answers are being written, {waiting} wait: there is no room for {answers} more."
            raise ApiError(429, message, code="queue_full", retry_after=2)

    def _check_count(self, answers: int) -> None:
        if answers > self.limits.max_n:
            raise wrong(f"{answers} answers are asked for at once; {self.limits.max_n} may be.", "n")

    def _check_length(self, tokens: int) -> None:
        room = self.limits.max_prompt or tokens
        if self.engine.context is not None:
            room = min(room, self.engine.context - 1)
        if tokens > room:
            message = f"The prompt has {tokens} tokens; there is room for {room}."
            raise wrong(message, "messages", "context_length_exceeded")
        if not tokens:
            raise wrong("The prompt is empty.", "prompt")

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise wrong("The prompt holds half a surrogate pair: it is no Unicode.", "prompt") from None
            return list(self.tokenizer(prompt, verbose=False)["input_ids"])
        if any(token >= self._vocabulary for token in prompt):
            raise wrong(f"The prompt holds an id that no token has: they are below {self._vocabulary}.", "prompt")
        return prompt

    async def _off_the_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._renders, work)
