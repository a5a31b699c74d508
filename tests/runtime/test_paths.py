from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from swiftune.errors import OutputError
from swiftune.runtime.paths import cache_dir, lock_of, locked, staged


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SWIFTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/swiftune")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_dir() == Path("/var/cache/swiftune")
    monkeypatch.setenv("SWIFTUNE_CACHE", "~/mine")
    assert cache_dir() == Path("/home/someone/mine")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt), staged(target) as part:  # noqa: PT012 - it fails after it has written
        (part / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with staged(target) as part:
        (part / "a").touch()
        assert not target.exists()
    assert [each.name for each in target.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_emptied(tmp_path: Path) -> None:
    target = tmp_path / "made"
    (tmp_path / ".made.part").mkdir()
    (tmp_path / ".made.part" / "left").touch()
    with staged(target):
        pass
    assert list(target.iterdir()) == []


def test_what_nobody_makes_any_more_is_removed_and_what_somebody_makes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path))
    things = tmp_path / "things"
    for name in ("killed", "made"):
        (things / f".{name}.part").mkdir(parents=True)
    with locked(lock_of(things / "made"), "making it"), staged(things / "other"):
        pass
    assert sorted(path.name for path in things.iterdir()) == [".made.part", "other"]


def _append(file: Path) -> None:
    with locked("thing", "counting"):
        before = file.read_text()
        file.write_text(before + "x")


def test_processes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "count"
    file.write_text("")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(file,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert file.read_text() == "xxxx"


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="SWIFTUNE_CACHE"), locked("thing", "making it"):
        pass
