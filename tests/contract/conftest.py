from __future__ import annotations

from pathlib import Path

import pytest

from swiftune.runtime import console
from tests.contract.world import World, build_mirror, settle


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def world(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty working directory; what is said once per process is said again."""
    monkeypatch.setattr(console, "_said", set())
    console.err.cache_clear()
    return settle(tmp_path / "work", mirror, monkeypatch)
