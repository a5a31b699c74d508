"""From logits to the next token of each request.

A request draws from its own generator, and only the draws of its own tokens; so its answer does not depend on who else
is answered. A token is drawn by one uniform number, from the inverse of the distribution function.

Shapes: N requests, V vocabulary, C candidates of one request.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from swiftune.generate.engine import Sampling, Token

if TYPE_CHECKING:
    from transformers import GenerationConfig

_CANDIDATES = 512
"""How many of the likeliest tokens are looked at first where top_p or min_p is to cut."""


@dataclass
class Chooser:
    """How one request's tokens are chosen, and what it has chosen so far."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    logprobs: int | None
    draw: random.Random
    prompt: frozenset[int] = frozenset()
    """Tokens of the prompt; empty where no penalty looks at them."""
    written: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, asked: Sampling, own: GenerationConfig, prompt: Sequence[int], logprobs: int | None) -> Chooser:
        """What is asked for, else what the model's own configuration says, else nothing."""
        samples = own.do_sample or bool(asked.top_k) or (asked.top_p or 1.0) < 1.0
        temperature = asked.temperature if asked.temperature is not None else first(own.temperature, 1.0) * samples
        penalty = first(asked.repetition_penalty, own.repetition_penalty, 1.0)
        return cls(
            temperature,
            max(first(asked.top_k, own.top_k, 50), 0),
            first(asked.top_p, own.top_p, 1.0),
            first(asked.min_p, own.min_p, 0.0),
            penalty,
            asked.presence_penalty,
            asked.frequency_penalty,
            asked.logit_bias,
            logprobs,
            random.SystemRandom() if asked.seed is None else random.Random(asked.seed),
            frozenset(prompt) if penalty != 1 else frozenset(),
        )

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)

    def adjust_(self, logits_V: torch.Tensor) -> None:
        """Applies penalties and biases in place. Repetition: arXiv:1909.05858, section 4.1."""
        if self.repetition_penalty != 1 and (seen := self.prompt.union(self.written)):
            seen_S = torch.tensor(sorted(seen), device=logits_V.device)
            scores_S = logits_V[seen_S]
            logits_V[seen_S] = torch.where(
                scores_S < 0, scores_S * self.repetition_penalty, scores_S / self.repetition_penalty
            )
        if self.written and (self.presence_penalty or self.frequency_penalty):
            ids_S = torch.tensor(list(self.written), device=logits_V.device)
            counts_S = torch.tensor(list(self.written.values()), device=logits_V.device, dtype=logits_V.dtype)
            logits_V[ids_S] -= self.presence_penalty + self.frequency_penalty * counts_S
        for token, bias in self.logit_bias:
            logits_V[token] += bias


def choose(choosers: Sequence[Chooser], logits_NV: torch.Tensor) -> list[Token]:
    """The next token of each request."""
    if not choosers:
        return []
    logits_NV = logits_NV.to(torch.float32, copy=True)
    raw = {n: logits_NV[n].clone() for n, c in enumerate(choosers) if c.logprobs is not None and c.adjusts}
    for chooser, logits_V in zip(choosers, logits_NV, strict=True):
        if chooser.adjusts:
            chooser.adjust_(logits_V)
    ids: list[int] = logits_NV.argmax(dim=-1).tolist()
    drawn = [n for n, chooser in enumerate(choosers) if chooser.temperature > 0]
    if drawn:
        _draw(drawn, choosers, logits_NV, ids)
    tokens = []
    for n, (chooser, token) in enumerate(zip(choosers, ids, strict=True)):
        chooser.written[token] += 1
        tokens.append(_token(token, raw.get(n, logits_NV[n]), chooser.logprobs))
    return tokens


def _token(token: int, logits_V: torch.Tensor, logprobs: int | None) -> Token:
    if logprobs is None:
        return Token(token)
    scores_V = logits_V.log_softmax(dim=-1)
    best = scores_V.topk(min(logprobs, len(scores_V)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(scores_V[token]), top)


def _draw(drawn: list[int], choosers: Sequence[Chooser], logits_NV: torch.Tensor, ids: list[int]) -> None:
    """Replaces the likeliest tokens in ``ids`` by drawn ones, for the requests in ``drawn``."""
    vocabulary = logits_NV.shape[-1]
    most = min(vocabulary, max(choosers[n].top_k or _CANDIDATES for n in drawn))
    best = logits_NV[drawn].topk(most)
    values_NC, ids_NC = best.values.double().cpu().numpy(), best.indices.cpu().numpy()
    for n, values_C, ids_C in zip(drawn, values_NC, ids_NC, strict=True):
        chooser = choosers[n]
        if chooser.top_k:
            k = min(chooser.top_k, vocabulary)
            weights_C = np.exp((values_C[:k] - values_C[0]) / chooser.temperature)
            kept_C = _cut(weights_C / weights_C.sum(), chooser)
        else:
            scaled_V = logits_NV[n].double() / chooser.temperature
            total = float(scaled_V.logsumexp(dim=-1))
            kept_C = _cut(np.exp(values_C / chooser.temperature - total), chooser)
            if len(kept_C) == most:  # what is looked at may not be all that is kept
                order = scaled_V.sort(descending=True)
                ids_C = order.indices.cpu().numpy()
                kept_C = _cut(np.exp(order.values.cpu().numpy() - total), chooser)
        reached_C = kept_C.cumsum()
        ids[n] = int(
            ids_C[min(reached_C.searchsorted(chooser.draw.random() * reached_C[-1], "right"), len(kept_C) - 1)]
        )


def _cut(p_C: np.ndarray, chooser: Chooser) -> np.ndarray:
    """The probabilities, the largest first, that top_p and then min_p leave."""
    if chooser.top_p < 1:
        p_C = p_C[: max(1, int((p_C.cumsum() - p_C < chooser.top_p).sum()))]
    if chooser.min_p > 0:
        p_C = p_C[p_C >= chooser.min_p * p_C[0]]
    return p_C


def first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)
