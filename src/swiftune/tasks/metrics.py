"""How near an answer is to its reference, by the names that ``--metric`` takes. All figures are percentages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from swiftune.generate import text_metrics
from swiftune.tasks.statistics import Array, Total, mean
from swiftune.tasks.task import Scores, percent

Measure = Callable[[str, str], Scores]
"""(answer, reference) to what is kept of the pair."""


def exact(answer: str, reference: str) -> Scores:
    """Equal but for case, blanks, and punctuation, quotes and brackets at the ends."""
    return {"exact": percent(_plain(answer) == _plain(reference))}


def contains(answer: str, reference: str) -> Scores:
    """The reference stands somewhere in the answer, in whatever case."""
    return {"contains": percent(_plain(reference) in _even(answer))}


def regex(answer: str, reference: str) -> Scores:
    """The reference is a regular expression that is found in the answer."""
    return {"regex": percent(re.search(reference, answer) is not None)}


def rouge(answer: str, reference: str) -> Scores:
    """F-measures; Chinese is cut into words."""
    return {name: [value] for name, value in text_metrics.rouge([answer], [reference]).items()}


def bleu(answer: str, reference: str, *, chinese: bool = False) -> Scores:
    """What corpus BLEU is made of: matches and n-grams of each order, and the two lengths."""
    return {"bleu-4": text_metrics.bleu_counts(answer, reference, chinese=chinese)}


def bleu_of(sums_D: Array, _count: int) -> float:
    """Corpus BLEU (not a mean of sentences' BLEU) from the sums of ``bleu``."""
    return text_metrics.bleu_from(sums_D.tolist())


FIGURES: dict[str, dict[str, Total]] = {
    "exact": {"exact": mean},
    "contains": {"contains": mean},
    "regex": {"regex": mean},
    "rouge": {"rouge-l": mean, "rouge-1": mean, "rouge-2": mean},
    "bleu": {"bleu-4": bleu_of},
    "identity": {"identity": mean},
    "judge": {"judge": mean},
}
"""By metric, its figures, the most telling first."""

PLAIN: dict[str, Measure] = {"exact": exact, "contains": contains, "regex": regex, "rouge": rouge}


def measure_of(metric: str, *, chinese: bool) -> Measure:
    """The function of a metric that needs nothing but the two texts."""
    return partial(bleu, chinese=chinese) if metric == "bleu" else PLAIN[metric]


def mentions(answer: str, wanted: Sequence[str]) -> bool:
    """Whether all of these names stand in the answer, in whatever case."""
    return all(name.casefold() in answer.casefold() for name in wanted)


def figures_of(metrics: Sequence[str]) -> dict[str, Any]:
    """The figures of several metrics, in their order."""
    return {name: total for metric in metrics for name, total in FIGURES[metric].items()}


_ENDS = " .,!?;:\"'`()[]{}。，！？、：；“”‘’（）《》"


def _even(text: str) -> str:
    return " ".join(text.casefold().split())


def _plain(text: str) -> str:
    """Without what ends a sentence, quotes it, or makes it bold in Markdown; unless that is all there is."""
    whole = _even(text)
    bare = whole.strip(_ENDS + "*" * whole.startswith("**"))
    point = "." if bare[:1].isalnum() and f".{bare}" in whole else ""  # .5, .NET
    return point + bare or whole
