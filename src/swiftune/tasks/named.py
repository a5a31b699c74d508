"""From what ``--eval_dataset`` names to tasks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from swiftune import hub
from swiftune.config.evaluating import task_label
from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger
from swiftune.data.load import load_samples, split
from swiftune.data.names import DatasetName
from swiftune.data.store import SampleStore
from swiftune.errors import DataError, NotFoundError, UsageError
from swiftune.runtime.console import warn
from swiftune.tasks import gsm8k, humaneval, own
from swiftune.tasks.benchmark_files import Source
from swiftune.tasks.choice import CEval, Mmlu
from swiftune.tasks.judge import RemoteJudge
from swiftune.tasks.metrics import FIGURES
from swiftune.tasks.own_metric import OwnMetric
from swiftune.tasks.rows import Judge, Rows
from swiftune.tasks.task import Task

Make = Callable[[Path, "str | None", "int | None"], Task]
"""(where its rows are, subset, worked examples) to the task."""

BENCHMARKS: dict[str, tuple[Source, Make]] = {
    "gsm8k": (gsm8k.SOURCE, lambda place, subset, shots: gsm8k.Gsm8k(place, subset=subset, shots=shots)),
    "humaneval": (humaneval.SOURCE, lambda place, _subset, _shots: humaneval.HumanEval(place)),
    "mmlu": (Mmlu.source, lambda place, subset, shots: Mmlu(place, subset=subset, shots=shots)),
    "ceval": (CEval.source, lambda place, subset, shots: CEval(place, subset=subset, shots=shots)),
}
OWN = ("identity_accuracy", "fidelity")


@dataclass(frozen=True)
class Trained:
    """The rows of a run, by the arguments that chose them."""

    dataset: Sequence[str]
    seed: int
    shuffle: bool
    held_back: float
    """Share of them that was not trained on."""
    columns: dict[str, str] | None


@dataclass
class Setting:
    """What tasks are made with, besides their names.

    Attributes:
        trained: the rows that the model was trained on, where that is known.
        name, author: one or two spellings each (Chinese, English).
    """

    ledger: Ledger
    metrics: Sequence[str] = ("exact",)
    shots: int | None = None
    use_hf: bool = False
    columns: dict[str, str] | None = None
    seed: int = 42
    trained: Trained | None = None
    name: Sequence[str] | None = None
    author: Sequence[str] | None = None
    judge_url: str | None = None
    judge_model: str | None = None


def make_task(text: str, setting: Setting) -> tuple[Task, int]:
    """The task of that name, and how many of its questions ``#N`` asks for.

    Raises:
        NotFoundError: there is no such task, file or data set.
        DataError: its rows cannot be used.
    """
    word, mark, where = text.partition("=")
    if not (mark and re.fullmatch(r"\w+(:[\w-]+)?", word)):
        word, where = text, ""
    name = DatasetName.parse(word if not where else f"{word}{_count(where)}")
    where = where.removesuffix(_count(where))
    if name.id in BENCHMARKS and not Path(name.id).is_file():
        source, make = BENCHMARKS[name.id]
        task = make(source.find(where, use_hf=setting.use_hf), name.subset, setting.shots)
        task.name = task_label(text)
        return task, min(name.rows_of(len(task)), len(task))
    if about := _own(text, name, where, setting):
        return about, min(name.rows_of(len(about)), len(about))
    rows = _rows(text, name, setting)
    return rows, len(rows)


def _own(text: str, name: DatasetName, where: str, setting: Setting) -> Rows | None:
    """A task about a tuned model, if that is what the name says."""
    if name.id == "identity_accuracy":
        if setting.trained is None:
            raise UsageError(
                "identity_accuracy asks what was trained, and no run says what that was.",
                "Name a run's adapter, or the rows with --dataset.",
            )
        return own.identity_accuracy(_questions(_trained(setting.trained, setting), setting.ledger), _who(setting))
    if name.id == "fidelity":
        rows = _questions(_samples([where or str(own.GENERAL)], setting), setting.ledger)
        try:
            trained = _trained(setting.trained, setting) if setting.trained else None
        except NotFoundError as error:
            warn(f"fidelity: whether its questions were trained on is not known. {error.what}")
            trained = None
        return own.fidelity(rows, trained, own=not where)
    if where:
        raise NotFoundError(f"--eval_dataset {text}: there is no task {name.id}.", _nearest(name.id))
    return None


def _rows(text: str, name: DatasetName, setting: Setting) -> Rows:
    try:
        samples = _questions(_samples([text], setting), setting.ledger)
    except NotFoundError as error:
        if "/" in name.id or "." in name.id:
            raise
        raise NotFoundError(
            f"--eval_dataset {text}: there is no such task, file or data set.", _nearest(name.id)
        ) from error
    if "regex" in setting.metrics:
        _refuse_wrong_patterns(samples)
    judges: dict[str, Judge] = {}
    metrics = []
    for metric in setting.metrics:
        if metric == "judge":
            assert setting.judge_url
            assert setting.judge_model
            judges["judge"] = RemoteJudge(setting.judge_url, setting.judge_model)
        elif ":" in metric:
            function = OwnMetric.load(metric)
            if function.name in FIGURES:
                raise UsageError(f"--metric {metric}: {function.name} is a metric of ours.", "Rename the function.")
            judges[function.name] = function
            metric = function.name
        metrics.append(metric)
    keys = [metric.key for metric in judges.values() if isinstance(metric, OwnMetric)]
    key = " ".join([*keys, setting.judge_url or "", setting.judge_model or ""])
    who = _who(setting) if "identity" in metrics else ()
    return Rows(task_label(text), samples, metrics, who=who, judges=judges, key=key)


def _samples(names: Sequence[str], setting: Setting, trained: Trained | None = None) -> SampleStore:
    return load_samples(
        names,
        partial(hub.find_dataset, use_hf=setting.use_hf),
        ledger=setting.ledger,
        columns=trained.columns if trained else setting.columns,
        seed=trained.seed if trained else setting.seed,
        shuffle=trained.shuffle if trained else False,
        identity=Identity.of(setting.name, setting.author),
    )


def _questions(samples: SampleStore, ledger: Ledger) -> SampleStore:
    """The rows that ask something and answer it in words; the others are set aside.

    Raises:
        DataError: no row does.
    """
    kept = []
    for i, sample in enumerate(samples):
        *before, answer = sample.messages
        if not any(message["role"] == "user" for message in before):
            ledger.withdraw(sample.place, "no question before the answer")
        elif not answer["content"].strip():
            ledger.withdraw(sample.place, "an answer without words, which nothing can be compared with")
        else:
            kept.append(i)
    if not kept:
        raise DataError(f"No row has a question with an answer in words:\n{ledger.summary()}")
    return SampleStore(samples.parts, samples.rows_N[kept])


def _refuse_wrong_patterns(samples: SampleStore) -> None:
    for sample in samples:
        try:
            re.compile(sample.messages[-1]["content"])
        except (re.error, OverflowError, RecursionError) as error:
            raise DataError(
                f"{sample.place}: the answer is no regular expression: {error}.",
                "With --metric regex every answer has to be one; a backslash takes a character as it is.",
            ) from None


def _trained(trained: Trained, setting: Setting) -> SampleStore:
    try:
        rows = _samples(trained.dataset, setting, trained)
    except NotFoundError as error:
        raise NotFoundError(f"What the model was trained on is not there any more. {error.what}", error.cure) from error
    return split(rows, trained.held_back, trained.seed)[0]


def _who(setting: Setting) -> list[str]:
    """All spellings of the name and the author."""
    who = Identity.of(setting.name, setting.author).or_default()
    return [*dict.fromkeys([*(who.name or ()), *(who.author or ())])]


def _count(text: str) -> str:
    found = re.search(r"#[0-9.]+%?$", text)
    return found[0] if found else ""


def _nearest(word: str) -> str:
    known = [*BENCHMARKS, *OWN]
    near = difflib.get_close_matches(word.casefold(), known, n=1, cutoff=0.5)
    tasks = f"Tasks: {', '.join(known)}; or a file of questions with answers."
    return f"Did you mean {near[0]}? {tasks}" if near else tasks
