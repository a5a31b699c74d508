"""Checkpoint folders: whole, or not called a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftune.errors import CheckpointError
from swiftune.train import checkpoint_folder
from swiftune.train.checkpoint_folder import MARKER

CONTENT = {"adapter_model.safetensors": b"weights" * 100, "args.json": b"{}", "deep/er.txt": b"more", "empty": b""}


def write(run: Path, step: int) -> Path:
    with checkpoint_folder.new(run, step) as folder:
        for name, content in CONTENT.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return run / f"checkpoint-{step}"


def test_a_whole_one_is_listed_and_verified(tmp_path: Path) -> None:
    second, first = write(tmp_path, 20), write(tmp_path, 3)
    assert checkpoint_folder.listing(tmp_path) == [(3, first), (20, second)]
    checkpoint_folder.verify(first)
    assert checkpoint_folder.newest(tmp_path) == second
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-20"}


def test_what_fails_half_way_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    first = write(tmp_path, 1)

    def fail() -> None:
        with checkpoint_folder.new(tmp_path, 2) as folder:
            (folder / "args.json").write_text("{")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    checkpoint_folder.verify(first)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    name=st.sampled_from([*CONTENT, MARKER]),
    how=st.sampled_from(["gone", "shorter", "longer", "flipped"]),
    at=st.integers(0),
)
def test_whatever_is_damaged_is_noticed(tmp_path_factory: pytest.TempPathFactory, name: str, how: str, at: int) -> None:
    run = tmp_path_factory.mktemp("run")
    folder = write(run, 7)
    file = folder / name
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif not content and how != "longer":
        return  # nothing to take from
    elif how == "flipped":
        content[at % len(content)] ^= 1 << at % 8
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-1] if how == "shorter" else content + b" ")
    blank = name == MARKER and how in ("longer", "shorter")  # white space at its end
    if blank:
        checkpoint_folder.verify(folder)
        return
    if name == MARKER and how == "flipped":
        try:
            checkpoint_folder.verify(folder)
        except CheckpointError:
            return
        assert content.split() == (folder / MARKER).read_bytes().split()  # white space again
        return
    with pytest.raises(CheckpointError, match=name):
        checkpoint_folder.verify(folder)
    if how != "flipped":
        assert checkpoint_folder.listing(run) == []


def test_leftovers_are_no_checkpoints_and_are_cleaned_up(tmp_path: Path) -> None:
    whole = write(tmp_path, 1)
    os.rename(write(tmp_path, 2), tmp_path / ".checkpoint-2.partial")
    (write(tmp_path, 3) / MARKER).unlink()
    (tmp_path / ".checkpoint-best.partial").symlink_to("checkpoint-1")
    assert checkpoint_folder.listing(tmp_path) == [(1, whole)]
    checkpoint_folder.rotate(tmp_path, 1, keep=())
    assert whole.exists()
    checkpoint_folder.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    assert write(tmp_path, 3) == tmp_path / "checkpoint-3"  # in place of the one that was not whole
    checkpoint_folder.verify(tmp_path / "checkpoint-3")


@given(st.sets(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 4), st.data())
@settings(deadline=None, max_examples=20)
def test_as_many_are_kept_as_asked_for(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], limit: int, data: st.DataObject
) -> None:
    run = tmp_path_factory.mktemp("run")
    for step in steps:
        write(run, step)
    best = data.draw(st.sampled_from(sorted(steps)))
    last = max(steps)
    checkpoint_folder.rotate(run, limit, keep=(best, last))
    left = [step for step, _ in checkpoint_folder.listing(run)]
    assert {best, last} <= set(left)
    assert len(left) == min(len(steps), max(limit, len({best, last})))
    others = sorted(steps - {best, last})
    assert sorted(set(left) - {best, last}) == others[len(others) - (len(left) - len({best, last})) :]
