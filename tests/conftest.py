"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

from tests import tiny

settings.register_profile("deep", max_examples=5000, deadline=None)  # pytest --hypothesis-profile deep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A log may quote half a surrogate pair, which pytest-xdist cannot send from process to process."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random Qwen2 with Qwen2.5's chat template. Read only: copy it before changing it."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "Tiny-Qwen2")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random Llama (grouped heads) with Llama 3's chat template. Read only."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "Tiny-Llama", family="llama")
