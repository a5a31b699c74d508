"""A vLLM for all tests, on a small model whose heads are of a size that vLLM's attention takes on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from swiftune.errors import UsageError
from swiftune.generate.vllm_adapters import Mix
from swiftune.generate.vllm_engine import VllmEngine
from swiftune.generate.vllm_server import find_python
from swiftune.models.load import load_model
from tests import tiny

SMALL = ["--enforce-eager", "--kv-cache-memory-bytes", str(2**28), "--max-model-len", "1024"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def python() -> str:
    """The Python that has vLLM."""
    try:
        return find_python()
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@dataclass(frozen=True)
class Folders:
    model: Path
    first: Path
    """An adapter of rank 4 on all linear layers."""
    second: Path
    """An rsLoRA adapter of rank 6 on some."""
    merged: Path
    """The model with the first adapter merged by PEFT."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("vllm")
    made = Folders(tiny.make_model(root / "Tiny", hidden=256), root / "first", root / "second", root / "merged")
    tuned = save_adapter(made.model, made.first, seed=1, r=4, lora_alpha=8, target_modules="all-linear")
    kinds = ["q_proj", "down_proj"]
    save_adapter(made.model, made.second, seed=2, r=6, lora_alpha=6, target_modules=kinds, use_rslora=True)
    tuned.merge_and_unload().save_pretrained(made.merged)
    tiny.save_tokenizer(made.merged)
    return made


def save_adapter(model: Path, target: Path, *, seed: int, **config: Any) -> Any:
    """Writes a random adapter and returns the tuned model."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = get_peft_model(
            load_model(model, dtype=torch.float32), LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **config)
        )
    tuned.save_pretrained(target)
    return tuned


@pytest.fixture(scope="session")
def engine(python: str, folders: Folders) -> Iterator[VllmEngine]:
    """Serves the model, its first adapter by default, and the weighted sum of both."""
    adapters = {"first": folders.first, "sum": Mix([folders.first, folders.second], [0.7, 0.3])}
    with closing(
        VllmEngine(
            folders.model,
            tiny.make_tokenizer(),
            python=python,
            adapters=adapters,
            default="first",
            dtype="float32",
            words=SMALL,
        )
    ) as engine:
        yield engine


@pytest.fixture(scope="session")
def merged(python: str, folders: Folders) -> Iterator[VllmEngine]:
    words = [*SMALL[:-1], "auto"]
    with closing(
        VllmEngine(folders.merged, tiny.make_tokenizer(), python=python, dtype="float32", words=words)
    ) as engine:
        yield engine
