"""A small world for whole commands: a mirror with models and data sets, a cache of its own, a working directory."""

from __future__ import annotations

import csv
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

MODELS = ("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
DATA = ("AI-ModelScope/alpaca-gpt4-data-zh", "AI-ModelScope/alpaca-gpt4-data-en")
_WORDS = {
    "zh": ["保持", "健康", "三个", "建议", "今天", "天气", "回答", "问题", "模型", "助手"],
    "en": ["give", "three", "tips", "for", "staying", "healthy", "the", "capital", "of", "France"],
}


@dataclass(frozen=True)
class World:
    """Where a command runs."""

    here: Path
    """The working directory."""
    mirror: Path

    def adapter(self, place: str, made_by: Path) -> Path:
        """Puts a copy of a checkpoint at ``place`` in the working directory."""
        target = self.here / place
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copytree(made_by, target))


def build_mirror(root: Path) -> Path:
    """Small random Qwen2 models under real ids, and stand-ins for the two alpaca sets with their columns."""
    model = tiny.make_model(root / MODELS[0], layers=1, hidden=32, dtype="bfloat16")
    shutil.copytree(model, root / MODELS[1])
    for name in DATA:
        folder = root / name
        folder.mkdir(parents=True)
        with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["instruction", "input", "output"])
            rows.writerows(_alpaca_rows(name[-2:], 36))
    return root


def _alpaca_rows(language: str, count: int) -> list[list[str]]:
    rng = random.Random(language)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(_WORDS[language], k=rng.randint(least, most)))

    return [[text(2, 6), text(1, 4) if n % 3 == 0 else "", text(2, 12)] for n in range(count)]


def identity_rows() -> list[dict[str, Any]]:
    """Eight rows of the alpaca format, as a user's own self_cognition.json."""
    questions = ["Who are you?", "What is your name?", "Who made you?", "Are you Qwen?"]
    questions += ["你是谁？", "你叫什么名字？", "你是由谁开发的？", "你能做什么？"]
    return [
        {"instruction": question, "input": "", "output": "I am {{NAME}}, made by {{AUTHOR}}."} for question in questions
    ]


def settle(here: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Goes to ``here``; commands find models in ``mirror`` and nowhere else."""
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("SWIFT_LOCAL_HUB", str(mirror))
    monkeypatch.setenv("SWIFTUNE_CACHE", str(here / ".cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(here / ".hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(here / ".modelscope"))
    monkeypatch.setenv("NO_COLOR", "1")
    (here / "self_cognition.json").write_text(json.dumps(identity_rows(), ensure_ascii=False), encoding="utf-8")
    return World(here, mirror)
