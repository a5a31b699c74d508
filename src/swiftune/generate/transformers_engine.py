"""Answers by a Transformers model in this process, with requests that join and leave at every token.

The parts: ``scheduler`` decides who is worked on, ``runners`` run the model, ``kv_store`` and ``kv_attention`` keep and
read keys and values, ``prefix_cache`` keeps those of requests that have ended, ``sampling`` chooses tokens.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.errors import UsageError
from swiftune.generate.engine import BASE, Answer, Piece, Request, Stream
from swiftune.generate.row import Row, Sink, limit_of
from swiftune.generate.runners import OneByOne, Runner, Together
from swiftune.generate.sampling import Chooser
from swiftune.generate.scheduler import Scheduler
from swiftune.generate.text_writer import TextWriter
from swiftune.generate.trial import serves
from swiftune.runtime.console import notice
from swiftune.tuners.lineup import Lineup

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

PREFIX_BYTES = 256 << 20
"""Memory for the tokens of requests that have ended."""


class TransformersEngine:
    """An Engine over a loaded model.

    Args:
        model: with the adapter that requests get by default, if any.
        stop_ids: tokens that end a turn (the renderer knows them), beside those of the model's generation_config.
        max_batch_size: requests worked on at the same time.
        prefix_bytes: most memory for tokens of requests that have ended.
        pack: compute with copies of the weights that are faster to read, where there are such: for weights that stay as
            they are, and memory for them twice.
        within: a context for all work of the model: autocast, say.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_ids: Sequence[int] = (),
        max_batch_size: int = 8,
        prefix_bytes: int = PREFIX_BYTES,
        pack: bool = False,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._lineup, self._tokenizer = Lineup(model), tokenizer
        self._prefix_bytes, self._pack = prefix_bytes, pack
        self._model: PreTrainedModel = self._lineup.base
        eos = self._defaults.eos_token_id
        self._stop_ids = frozenset([*stop_ids, *([eos] if isinstance(eos, int) else eos or [])])
        self._scheduler = Scheduler(self._runner, max_batch_size, within)

    @property
    def context(self) -> int | None:
        """``max_position_embeddings`` of the model's configuration."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def adapters(self) -> tuple[str, ...]:
        """See Engine."""
        return self._lineup.names

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See Engine. The time of a request counts from when there is room for it."""
        answers: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()

        def sink(index: int) -> Sink:
            return lambda item: None if isinstance(item, Piece) else answers.put((index, item))

        rows = [self._row(request, sink(index)) for index, request in enumerate(requests)]
        self._scheduler.submit(rows)
        try:
            for _ in rows:
                index, answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield index, answer
        finally:
            for row in rows:
                row.cancel()

    def stream(self, request: Request) -> Stream:
        """See Engine."""
        row = self._row(request, lambda item: stream.put(item))
        row.submitted = time.perf_counter()
        stream = Stream(row.cancel)
        self._scheduler.submit([row])
        return stream

    def load_adapter(self, name: str, path: Path) -> None:
        """See Engine."""
        self._scheduler.between(lambda _: self._lineup.load(name, path))

    def unload_adapter(self, name: str) -> None:
        """See Engine."""

        def unload(runner: Runner) -> None:
            self._lineup.unload(name)
            runner.forget(name)

        self._scheduler.between(unload, unless=lambda row: row.adapter == name)

    def load(self) -> tuple[int, int]:
        """See Engine."""
        return self._scheduler.load()

    def close(self) -> None:
        """See Engine."""
        self._scheduler.close()

    @property
    def _defaults(self) -> GenerationConfig:
        return self._model.generation_config

    def _runner(self) -> Runner:
        reason = serves(self._model, self._lineup)
        if reason is None:
            return Together(self._model, self._lineup, self._prefix_bytes, pack=self._pack)
        notice(f"Requests are answered one token at a time each, not together: {reason}.")
        return OneByOne(self._model, self._lineup)

    def _row(self, request: Request, sink: Sink) -> Row:
        sampling, prompt = request.sampling, list(request.prompt_ids)
        vocabulary = self._tokenizer.get_added_vocab()
        marks = [vocabulary[word] for word in sampling.stop if word in vocabulary]
        chooser = Chooser.of(sampling, self._defaults, prompt, request.logprobs)
        limit = limit_of(len(prompt), sampling.max_new_tokens or self._defaults.max_new_tokens, self.context)
        stop_ids = self._stop_ids.union(marks)
        self._check(prompt, chooser)
        writer = TextWriter(self._tokenizer, sampling.stop)
        return Row(prompt, limit, chooser, stop_ids, writer, self._adapter(request.adapter), sink)

    def _adapter(self, name: str | None) -> str:
        if name is None:
            return self._lineup.default
        if name and name not in self.adapters:
            raise UsageError(f"There is no adapter {name}.", f"There are: {', '.join(self.adapters) or 'none'}.")
        if name == BASE and not self._lineup.has_base:
            raise UsageError("The adapter that the engine was started with has changed the base, which is not there.")
        return name

    def _check(self, prompt: list[int], chooser: Chooser) -> None:
        """Raises UsageError for what would fail in the middle of a pass."""
        size = self._model.get_input_embeddings().weight.shape[0]
        if not prompt:
            raise UsageError("A prompt needs a token at least.")
        for token in (*prompt, *(token for token, _ in chooser.logit_bias)):
            if not 0 <= token < size:
                raise UsageError(f"There is no token {token}: the model has {size}.")
