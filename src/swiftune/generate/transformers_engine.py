"""Answers by Transformers' own ``generate``, in static batches.

``generate`` calls its stopping criteria after every step with all tokens so far; ours (``_Watch``) is where texts are
decoded, stop words found, answers handed out and work cancelled. Sampling is done by the last logits processor, which
adds Gumbel noise, drawn for each row from the row's own seed, so that the likeliest token is a true sample and an
answer does not depend on its neighbours in the batch.

Shapes: B rows of a batch, T tokens of the longest prompt and its answer so far, V vocabulary.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import MinPLogitsWarper

from swiftune.errors import AdapterError, UsageError
from swiftune.generate.engine import Answer, FinishReason, Piece, Request, Sampling, Stream, Token
from swiftune.generate.text_writer import TextWriter
from swiftune.runtime.console import notice

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ENDLESS = 2048
"""Most new tokens where neither the request nor the model sets a limit."""


class TransformersEngine:
    """An Engine over a loaded model.

    Args:
        stop_ids: tokens that end a turn (the renderer knows them), beside those of the model's generation_config.
        max_batch_size: requests worked on at the same time.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_ids: Sequence[int] = (),
        max_batch_size: int = 8,
    ) -> None:
        self._model, self._tokenizer, self._max_batch_size = model, tokenizer, max_batch_size
        self._owner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._defaults: GenerationConfig = self._owner.generation_config
        eos = self._defaults.eos_token_id
        self._busy = threading.Lock()
        self._stop_ids = {*stop_ids, *([eos] if isinstance(eos, int) else eos or [])}

    @property
    def context(self) -> int | None:
        """``max_position_embeddings`` of the model's configuration."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See Engine. Requests of like length go together, the longest first; a batch samples in one way."""
        rows = [self._row(index, request) for index, request in enumerate(requests)]
        kinds: dict[tuple[float, ...], list[_Row]] = {}
        for row in sorted(rows, key=lambda row: len(row.prompt), reverse=True):
            kinds.setdefault(row.kind, []).append(row)
        for same in kinds.values():
            for start in range(0, len(same), self._max_batch_size):
                batch = same[start : start + self._max_batch_size]
                self._run(batch)
                yield from ((row.index, row.answer()) for row in batch)

    @property
    def adapters(self) -> tuple[str, ...]:
        """See Engine."""
        return ()

    def load_adapter(self, name: str, path: Path) -> None:
        """See Engine."""
        raise AdapterError(f"{path} cannot be loaded as {name}: this engine takes no adapters while it runs.")

    def unload_adapter(self, name: str) -> None:
        """See Engine."""
        raise AdapterError(f"There is no adapter {name}.")

    def load(self) -> tuple[int, int]:
        """See Engine."""
        return int(self._busy.locked()), 0

    def close(self) -> None:
        """See Engine."""

    def stream(self, request: Request) -> Stream:
        """See Engine. The model runs in a thread of its own, and what it raises is raised to the reader."""
        row = self._row(0, request)
        stream = Stream(row.cancel)

        def work() -> None:
            try:
                self._run([row], lambda text, token: stream.put(Piece(text, (Token(token),))))
                if not row.cancelled:
                    stream.put(row.answer())
            except BaseException as error:
                stream.put(error)

        threading.Thread(target=work, name="swiftune-stream", daemon=True).start()
        return stream

    def _row(self, index: int, request: Request) -> _Row:
        sampling, prompt = request.sampling, list(request.prompt_ids)
        room = self.context - len(prompt) if self.context is not None else None
        if room is not None and room < 1:
            raise UsageError(
                f"A prompt of {len(prompt)} tokens leaves no room for an answer: the model's context is {self.context}."
            )
        limit = sampling.max_new_tokens or self._defaults.max_new_tokens
        if limit and room is not None and limit > room:
            notice(
                f"The model's context of {self.context} tokens leaves some answers fewer than the {limit} new tokens "
                "asked for."
            )
        limit = min(limit or room or _ENDLESS, room or limit or _ENDLESS)
        vocabulary = self._tokenizer.get_added_vocab()
        marks = {vocabulary[word] for word in sampling.stop if word in vocabulary}
        return _Row(
            index,
            prompt,
            limit,
            self._kind(sampling),
            self._stop_ids | marks,
            TextWriter(self._tokenizer, sampling.stop),
            random.SystemRandom().getrandbits(63) if sampling.seed is None else sampling.seed,
        )

    def _kind(self, sampling: Sampling) -> tuple[float, ...]:
        """(temperature, top_k, top_p, min_p, repetition_penalty), each the request's own, the model's or neutral."""
        own, asked = self._defaults, sampling
        samples = own.do_sample or bool(asked.top_k) or (asked.top_p or 1.0) < 1.0
        temperature = asked.temperature if asked.temperature is not None else _first(own.temperature, 1.0) * samples
        penalty = _first(asked.repetition_penalty, own.repetition_penalty, 1.0)
        if temperature == 0:
            return (0.0, 0.0, 1.0, 0.0, penalty)
        top_k, top_p = _first(asked.top_k, own.top_k, 50), _first(asked.top_p, own.top_p, 1.0)
        return (temperature, max(top_k, 0), top_p, _first(own.min_p, 0.0), penalty)

    def _run(self, rows: list[_Row], on_text: Callable[[str, int], None] = lambda *_: None) -> None:
        """Writes the answers of ``rows``, all of one kind. ``on_text`` gets the pieces of the only row's text."""
        with self._busy:
            self._write(rows, on_text)

    def _write(self, rows: list[_Row], on_text: Callable[[str, int], None]) -> None:
        length = max(len(row.prompt) for row in rows)
        # A row is padded with its own first token, behind the mask: any other would count as written, and so be
        # penalised as a repetition.
        ids_BT = torch.tensor([[row.prompt[0]] * (length - len(row.prompt)) + row.prompt for row in rows])
        mask_BT = torch.tensor([[0] * (length - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        device, was_training, config = self._model.device, self._model.training, self._config(rows)
        self._model.eval()
        # Transformers fills the blanks of a configuration from the model's own, and warns where the two are at odds.
        self._owner.generation_config = config
        try:
            self._model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                generation_config=config,
                logits_processor=_sampler(rows, device),
                stopping_criteria=StoppingCriteriaList([_Watch(rows, on_text)]),
            )
        finally:
            self._owner.generation_config = self._defaults
            self._model.train(was_training)

    def _config(self, rows: list[_Row]) -> GenerationConfig:
        """The model's own generation_config, as far as this engine does not decide itself."""
        config = copy.deepcopy(self._defaults)
        config.max_length, config.max_new_tokens = None, max(row.limit for row in rows)
        # The processors given do the sampling: to ``generate`` this is greedy.
        config.do_sample, config.num_beams, config.num_return_sequences = False, 1, 1
        config.temperature = config.top_k = config.top_p = config.min_p = config.typical_p = None
        config.repetition_penalty = rows[0].kind[-1]
        config.eos_token_id = sorted(self._stop_ids) or None
        config.pad_token_id = _first(self._tokenizer.pad_token_id, *config.eos_token_id or (), 0)
        config.return_dict_in_generate, config.use_cache = False, True
        return config


@dataclass
class _Row:
    """A request at work."""

    index: int
    prompt: list[int]
    limit: int
    kind: tuple[float, ...]
    stop_ids: set[int]
    writer: TextWriter
    seed: int
    ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    cancelled: bool = False
    first: float = 0.0
    last: float = 0.0

    def take(self, token: int, seconds: float) -> str:
        """Notes a written token; gives the text that it makes safe to show."""
        self.ids.append(token)
        self.first, self.last = self.first or seconds, seconds
        text = "" if token in self.stop_ids else self.writer.take(token)
        if token in self.stop_ids or self.writer.stopped:
            self.finish = "stop"
        elif len(self.ids) >= self.limit:
            self.finish = "length"
        return text + (self.writer.end() if self.finish else "")

    def cancel(self) -> None:
        self.cancelled = True

    def answer(self) -> Answer:
        assert self.finish is not None
        return Answer(self.writer.text, self.ids, self.finish, len(self.prompt), self.last, self.first)


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Sees every token as it is written, and says which rows are done."""

    def __init__(self, rows: list[_Row], on_text: Callable[[str, int], None]) -> None:
        self._rows, self._on_text, self._start = rows, on_text, time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seconds = time.perf_counter() - self._start
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if row.finish is None and not row.cancelled:
                self._on_text(row.take(token, seconds), token)
        done = [row.finish is not None or row.cancelled for row in self._rows]
        return torch.tensor(done, device=input_ids.device)


def _sampler(rows: list[_Row], device: torch.device) -> LogitsProcessorList:
    """What turns logits into the ones whose maximum is the next token; empty for greedy decoding."""
    temperature, top_k, top_p, min_p, _ = rows[0].kind
    if temperature == 0:
        return LogitsProcessorList()
    steps = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    steps += [TopKLogitsWarper(int(top_k))] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [MinPLogitsWarper(min_p)] if min_p else []
    return LogitsProcessorList([*steps, _SeededGumbel([row.seed for row in rows], device)])


class _SeededGumbel(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise: the maximum of ``logits + noise`` is distributed as their softmax (Gumbel, 1954)."""

    def __init__(self, seeds: list[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise_BV = torch.empty_like(scores)
        for noise_V, generator in zip(noise_BV, self._generators, strict=True):
            noise_V.exponential_(generator=generator)
        return scores - noise_BV.log()


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)
