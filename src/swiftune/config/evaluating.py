"""The arguments of ``swift eval``, and those of tasks asked while training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import AfterValidator

from swiftune.config.declare import Arguments, unset
from swiftune.config.groups import (
    DataArguments,
    GenerateArguments,
    ModelArguments,
    RunArguments,
    TemplateArguments,
)
from swiftune.config.quantization import QuantizeArguments
from swiftune.config.values import (
    CommaNumbers,
    Count,
    CountOrZero,
    Folder,
    Name,
    Names,
    Of,
    PositiveOrZero,
    Rows,
    Tokens,
)
from swiftune.config.vllm import VllmArguments

METRICS = ("exact", "contains", "regex", "rouge", "bleu", "identity", "judge")
FIGURES = {"rouge": ("rouge-l", "rouge-1", "rouge-2"), "bleu": ("bleu-4",)}
"""The figures of metrics that are not called as their only one."""


def _metric(value: str) -> str:
    if value in METRICS or re.fullmatch(r".+\.py:\w+", value):
        return value
    raise ValueError(f"write {', '.join(METRICS)}, or file.py:function")


Metrics = Annotated[
    list[Annotated[str, AfterValidator(_metric), Of("metric")]],
    AfterValidator(lambda names: list(dict.fromkeys(names))),
]


def task_label(text: str) -> str:
    """What a task that was named so is called in tables and logs.

    >>> [task_label(name) for name in ("gsm8k#50", "mmlu:anatomy", "fidelity=rows.jsonl", "data/my-rows.jsonl.gz")]
    ['gsm8k', 'mmlu-anatomy', 'fidelity', 'my-rows']
    """
    name = re.sub(r"#[0-9.]+%?$", "", text)
    task, mark, _ = name.partition("=")
    if mark and re.fullmatch(r"\w+(:[\w-]+)?", task):
        return task.replace(":", "-")
    return re.sub(r"[^\w.-]+", "-", re.sub(r"(\.(jsonl?|csv|parquet|gz|zst))+(?=$|:)", "", PurePath(name).name))


def task_figures(tasks: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """What tasks may be logged as while training, behind ``eval_``: the first figure of each has the task's name alone.

    >>> task_figures(["sums.jsonl", "fidelity"], ["exact", "my.py:length"])
    ['sums', 'sums_length', 'fidelity', 'fidelity_length', 'fidelity_rouge-1', 'fidelity_rouge-2']
    """
    further = [figure for name in metrics for figure in FIGURES.get(name, (name.rpartition(":")[2],))][1:]
    names = []
    for label in map(task_label, tasks):
        own = FIGURES["rouge"][1:] if label == "fidelity" else ()
        names += [label, *(f"{label}_{figure}" for figure in dict.fromkeys([*further, *own]))]
    return names


class TaskArguments(Arguments):
    """Tasks: what is asked, and how answers are scored."""

    eval_dataset: Names = []
    """Tasks: `gsm8k`, `humaneval`, `mmlu[:subject]`, `ceval[:subject]`, `identity_accuracy`, `fidelity`; a file or data
    set of questions with answers, scored by --metric. `task=FOLDER` says where a task's rows are, `#N` takes N."""
    eval_limit: Rows | None = unset("all of them")
    """Questions of each task that are asked: the first ones."""
    num_fewshot: CountOrZero | None = unset("gsm8k 8, mmlu and ceval 5")
    """Worked examples that a benchmark puts before each question."""
    metric: Metrics = ["exact"]
    """How answers to the questions of a file are scored: `exact`, `contains`, `regex`, `rouge`, `bleu`, `identity` (the
    names that the row's answer has), `judge`, or your own function as `file.py:function`."""
    judge_url: Name | None = unset("none")
    """With --metric judge: an OpenAI-compatible service, such as http://127.0.0.1:8000/v1. Its key is read from the
    environment: JUDGE_API_KEY or OPENAI_API_KEY."""
    judge_model: Name | None = unset("none")
    """With --metric judge: the model's name there."""


class EvalBackendArguments(Arguments):
    """Evaluation: what is compared, what runs the model, and where the results go."""

    compare: Names = []
    """Models that get the same questions: `base`, adapters, folders of models (`name=FOLDER` names one); the others are
    compared with the first."""
    eval_backend: Literal["native", "lm_eval"] = "native"
    """`lm_eval` hands the tasks of --eval_dataset, by their names there or as a .yaml file, to that harness."""
    infer_backend: Literal["transformers", "vllm"] = "transformers"
    """What runs the model."""
    max_batch_size: Count = 16
    """Questions that are answered at once."""
    eval_samples: Annotated[int, Gt(0), Of("answers")] = 1
    """Answers to each question; with `humaneval` also pass@k for k of 10, 100 and this number."""
    eval_output_dir: Folder = "eval_output"
    """Where answers and reports go. The same command finds its answers there and goes on."""
    adapter_weights: CommaNumbers = []
    """Weight of each of several --adapters: `0.7,0.3`."""
    max_length: Tokens | None = unset("the model's context")
    """Longest prompt."""


class EvalArguments(
    VllmArguments,
    RunArguments,
    GenerateArguments,
    DataArguments,
    TemplateArguments,
    EvalBackendArguments,
    TaskArguments,
    QuantizeArguments,
    ModelArguments,
):
    """Arguments of ``swift eval``."""

    temperature: PositiveOrZero | None = 0.0
    max_new_tokens: Tokens | None = unset("what the task needs: 16 to 512")
