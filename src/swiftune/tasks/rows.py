"""Questions from a file, with the metrics that the user names.

{"question": "What is the capital of France?", "answer": "Paris"}

All layouts of chats are read that training reads; the last answer of a row is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swiftune.generate.text_metrics import is_chinese
from swiftune.tasks.metrics import FIGURES, measure_of, mentions
from swiftune.tasks.statistics import Total, mean
from swiftune.tasks.task import Judged, Question, percent
from swiftune.types import Sample

Judge = Callable[[Question, str], Judged]
"""A metric that needs the whole question, such as another model's opinion."""

_LOOKED_AT = 200
"""Rows by which it is decided whether BLEU is of Chinese."""


class Rows:
    """A task made of rows.

    Args:
        samples: the rows, each with an answer.
        metrics: names of ``FIGURES``, and of ``judges``.
        who: the names by which the model is to call itself and its author, in all their spellings.
        judges: further metrics by name, each giving a figure of that name.
    """

    max_new_tokens = 256

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        metrics: Sequence[str],
        *,
        who: Sequence[str] = (),
        judges: dict[str, Judge] | None = None,
        key: str = "",
    ) -> None:
        self.name, self._samples, self._who, self._judges = name, samples, who, judges or {}
        self._metrics = metrics
        self.figures: dict[str, Total] = {}
        for metric in metrics:
            self.figures |= FIGURES.get(metric, {metric: mean})
        self.workers = 8 if "judge" in metrics else 0
        self.key = f"rows 2 {' '.join(metrics)} {' '.join(who)} {key}"
        self._chinese = any(is_chinese(self[i].reference) for i in range(min(len(samples), _LOOKED_AT)))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Question:
        sample = self._samples[index]
        *messages, answer = sample.messages
        return Question(f"{index}", messages, answer["content"], {"tools": sample.tools, "place": str(sample.place)})

    def score(self, question: Question, answer: str) -> Judged:
        """By all the metrics."""
        judged = Judged({}, "")
        for metric in self._metrics:
            more = self._measure(metric, question, answer)
            judged = Judged(judged.scores | more.scores, judged.why or more.why)
        return judged

    def _measure(self, metric: str, question: Question, answer: str) -> Judged:
        if metric in self._judges:
            return self._judges[metric](question, answer)
        if metric == "identity":
            wanted = said_in(question.reference, self._who)
            right = mentions(answer, wanted)
            return Judged({"identity": percent(right)}, "" if right else f"wanted {' and '.join(wanted)}")
        return Judged(measure_of(metric, chinese=self._chinese)(answer, question.reference))


def said_in(reference: str, who: Sequence[str]) -> list[str]:
    """Which of the names an answer has to mention: those that its reference does."""
    return [name for name in dict.fromkeys(who) if mentions(reference, [name])]
