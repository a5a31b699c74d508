"""Whether two models answer alike: one writes greedily, the other is led along its words and asked at every place.

As long as the likeliest token is the same at every place, so is what the second would write by itself.

Shapes: A tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from swiftune.types import Row


@dataclass(frozen=True)
class Tolerance:
    """How far apart models that are meant to be the same may be, where one has weights of a dtype."""

    kl: float
    """Mean Kullback-Leibler divergence of the distributions of the next token, in nats."""
    difference: float
    """Largest difference of two logits, as a share of the standard deviation of the logits there."""


TOLERANCES = {
    "float32": Tolerance(1e-6, 1e-2),
    "float16": Tolerance(1e-3, 0.2),
    "bfloat16": Tolerance(2e-2, 1.0),
}
"""Chosen: float32 differs by the order of sums, 16 bits by the rounding of each weight (docs/export.md)."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and what it knew when it did."""

    prompt: Sequence[int]
    ids_A: list[int]
    logits_AV: torch.Tensor
    """float32, in main memory."""


@dataclass(frozen=True)
class Comparison:
    """Of two models, over all places of all answers."""

    prompts: int
    places: int
    max_difference: float
    """Of two logits."""
    max_relative_difference: float
    """In standard deviations of the logits at that place."""
    mean_difference: float
    kl_mean: float
    """Of the second's distribution from the first's, in nats."""
    kl_max: float
    greedy_tokens_equal: float
    """Share of places with the same likeliest token."""
    greedy_answers_equal: int
    """Prompts to which all of the answer is the same."""

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the two are the same model. What is no number is within nothing."""
        return self.kl_mean <= tolerance.kl and self.max_relative_difference <= tolerance.difference


@torch.inference_mode()
def write(model: PreTrainedModel, prompt: Sequence[int], stop_ids: Sequence[int], limit: int) -> Answer:
    """A greedy answer of at most ``limit`` tokens, the one that ends it included."""
    return _led(model, prompt, limit, lambda likeliest, _: likeliest, stop_ids)


@torch.inference_mode()
def compare(model: PreTrainedModel, answers: Sequence[Answer]) -> Comparison:
    """Leads ``model`` along the ``answers`` of another."""
    differences, relative, divergences, same = [], [], [], []
    for answer in answers:
        own = _led(model, answer.prompt, len(answer.ids_A), lambda _, place, ids=answer.ids_A: ids[place], ())
        # Two infinities that are the same are not apart.
        apart_AV = torch.where(own.logits_AV == answer.logits_AV, 0.0, (own.logits_AV - answer.logits_AV).abs())
        differences.append(apart_AV)
        relative.append(apart_AV.amax(-1) / answer.logits_AV.std(-1))
        there_AV, here_AV = answer.logits_AV.log_softmax(-1), own.logits_AV.log_softmax(-1)
        divergences.append(torch.where(there_AV.exp() == 0, 0.0, there_AV.exp() * (there_AV - here_AV)).sum(-1))
        same.append(own.logits_AV.argmax(-1) == answer.logits_AV.argmax(-1))
    kl, equal = torch.cat(divergences), torch.cat(same)
    return Comparison(
        prompts=len(answers),
        places=len(equal),
        max_difference=max(float(apart_AV.max()) for apart_AV in differences),
        max_relative_difference=float(torch.cat(relative).max()),
        mean_difference=sum(float(apart_AV.mean()) * len(apart_AV) for apart_AV in differences) / len(equal),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        greedy_tokens_equal=float(equal.float().mean()),
        greedy_answers_equal=sum(bool(one.all()) for one in same),
    )


def _led(model: Any, prompt: Sequence[int], limit: int, choose: Any, stop_ids: Sequence[int]) -> Answer:
    """Has a model write what ``choose`` makes of its likeliest token and the place."""
    step, cache = list(prompt), None
    ids: list[int] = []
    logits: list[torch.Tensor] = []
    while len(ids) < limit and not (ids and ids[-1] in stop_ids):
        out = model(input_ids=torch.tensor([step], device=model.device), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0, -1].float().cpu())
        ids.append(choose(int(logits[-1].argmax()), len(ids)))
        step = ids[-1:]
    return Answer(prompt, ids, torch.stack(logits))


@torch.inference_mode()
def perplexity(model: PreTrainedModel, rows: Iterable[Row]) -> float:
    """``exp`` of the mean loss of the supervised tokens."""
    total, count = 0.0, 0
    for row in rows:
        ids_T, labels_T = (torch.from_numpy(array).long().to(model.device) for array in (row.ids_T, row.labels_T))
        for ids, labels in zip(*(torch.split(each, list(row.lengths)) for each in (ids_T, labels_T)), strict=True):
            logits = model(input_ids=ids[None]).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum"))
        count += row.supervised
    return math.exp(total / max(count, 1))
