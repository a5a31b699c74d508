"""Metrics of rows: BLEU and ROUGE against the libraries' own command lines."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swiftune.config.evaluating import FIGURES, METRICS
from swiftune.errors import RunError, UsageError
from swiftune.tasks import metrics
from swiftune.tasks.own_metric import OwnMetric
from swiftune.tasks.rows import Rows, said_in
from swiftune.tasks.statistics import mean
from swiftune.tasks.task import Question
from swiftune.types import Place, Sample

PAIRS = [
    ("the cat sat on the mat today", "the cat is sitting on the mat"),
    ("Paris is the capital of France.", "The capital of France is Paris."),
    ("hello", "general hello there, how are you?"),
    ("it was a dark and stormy night in the old town", "it was a dark and stormy night"),
]
CHINESE = [
    ("今天天气很好，我们去公园。", "今天的天气真好，我们去公园玩。"),
    ("我是小助手", "我是一个小助手，很高兴认识你。"),
]


def sample(question: str, answer: str) -> Sample:
    return Sample([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], Place("x", 1))


def figures(pairs: list[tuple[str, str]], *names: str) -> dict[str, float]:
    """As a task makes them: kept of each row, and summed."""
    task = Rows("rows", [sample("?", reference) for _, reference in pairs], names)
    judged = [task.score(task[i], answer) for i, (answer, _) in enumerate(pairs)]
    return {
        name: total(np.sum([each.scores[name] for each in judged], 0), len(pairs))
        for name, total in task.figures.items()
    }


@pytest.mark.parametrize(("pairs", "tokenizer"), [(PAIRS, "13a"), (CHINESE, "zh")])
def test_bleu_is_that_of_sacrebleus_command(pairs: list[tuple[str, str]], tokenizer: str, tmp_path: Path) -> None:
    for name, texts in zip(("hyp", "ref"), zip(*pairs, strict=True), strict=True):
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-b", "-w", "6", "-tok", tokenizer]
    told = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert figures(pairs, "bleu")["bleu-4"] == pytest.approx(float(told), abs=1e-5)


def test_rouge_is_that_of_rouge_scores_command(tmp_path: Path) -> None:
    for name, texts in zip(("hyp", "ref"), zip(*PAIRS, strict=True), strict=True):
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "rouge_score.rouge", "--rouge_types=rouge1,rouge2,rougeL"]
    files = ["--target_filepattern=ref", "--prediction_filepattern=hyp", "--output_filename=out.csv"]
    files += ["--aggregate=false", "--use_stemmer=false"]
    subprocess.run([*command, *files], cwd=tmp_path, check=True, capture_output=True)
    with (tmp_path / "out.csv").open() as file:
        told = list(csv.DictReader(file))
    for name, theirs in (("rouge-1", "rouge1-F"), ("rouge-2", "rouge2-F"), ("rouge-l", "rougeL-F")):
        each = [100 * float(row[theirs]) for row in told]  # to six decimals
        assert [figures([pair], "rouge")[name] for pair in PAIRS] == pytest.approx(each, abs=1e-4)
        assert figures(PAIRS, "rouge")[name] == pytest.approx(np.mean(each), abs=1e-4)


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "right"),
    [
        ("exact", " Paris.", "paris", True),
        ("exact", "It is Paris", "Paris", False),
        ("exact", "北京。", "北京", True),
        ("exact", '"(Paris)."', "Paris?", True),
        ("exact", "**Paris.**", "Paris", True),
        ("exact", "7", "-7", False),
        ("exact", "C", "C++", False),
        ("exact", "C#.", "C#", True),
        ("exact", "5", ".5", False),
        ("exact", "(.5)", ".5", True),
        ("exact", "A*", "A", False),
        ("exact", "?!", "?", False),
        ("contains", "C, of course", "C++", False),
        ("contains", "It is C++.", "C++", True),
        ("contains", "What is it", "?!", False),
        ("contains", "What?!", "?!", True),
        ("contains", "It is PARIS, I think.", "Paris", True),
        ("contains", "London", "Paris", False),
        ("regex", "about 42 km", r"\b4[0-9]\b", True),
        ("regex", "about 52 km", r"\b4[0-9]\b", False),
    ],
)
def test_plain_metrics(metric: str, answer: str, reference: str, right: bool) -> None:
    assert metrics.PLAIN[metric](answer, reference) == {metric: [100.0 if right else 0.0]}


def test_identity_asks_for_the_names_that_the_reference_says() -> None:
    who = ["小明", "Aurora", "北风", "Northwind"]
    assert said_in("I am Aurora, made by Northwind.", who) == ["Aurora", "Northwind"]
    task = Rows("t", [sample("?", "I am Aurora, made by Northwind."), sample("?", "我是小明")], ["identity"], who=who)
    assert task.score(task[0], "aurora of NORTHWIND").scores["identity"] == [100]
    half = task.score(task[0], "I am Aurora.")
    assert half.scores["identity"] == [0]
    assert "Northwind" in half.why
    assert task.score(task[1], "小明在此").scores["identity"] == [100]


def test_a_metric_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text(
        "def short(answer, reference, messages):\n    return len(answer) <= len(reference)\n"
        "def bad(answer, reference, messages):\n    return 1 / 0\n"
        "def none(answer, reference, messages):\n    return None\n"
    )
    question = Question("7", [{"role": "user", "content": "?"}], "four")
    assert OwnMetric.load(f"{file}:short")(question, "abc").scores == {"short": [1.0]}
    with pytest.raises(RunError, match="question 7.*ZeroDivisionError"):
        OwnMetric.load(f"{file}:bad")(question, "abc")
    with pytest.raises(RunError, match="None, which is no number"):
        OwnMetric.load(f"{file}:none")(question, "abc")
    with pytest.raises(UsageError, match="no function shor.") as told:
        OwnMetric.load(f"{file}:shor")
    assert "short" in str(told.value)
    with pytest.raises(UsageError, match="no file"):
        OwnMetric.load("nowhere.py:f")
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(UsageError, match="cannot be run: ModuleNotFoundError"):
        OwnMetric.load(f"{file}:short")


def test_the_figures_that_arguments_may_name_are_those_there_are() -> None:
    assert {metric: tuple(figures) for metric, figures in metrics.FIGURES.items()} == {
        metric: FIGURES.get(metric, (metric,)) for metric in METRICS
    }


def test_figures_know_how_they_are_summed() -> None:
    assert metrics.figures_of(["exact", "bleu"]) == {"exact": mean, "bleu-4": metrics.bleu_of}
