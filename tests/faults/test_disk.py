"""A disk that fills up in the middle of a save: what was saved stays whole, and training does not end for it.

The run writes to a tmpfs of 8 MB; a filler file takes what is free of it as soon as there is a checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import runs
from tests.faults.runs import Training, World
from tests.faults.test_kills import BASE
from tests.recipes.chats import Flags

pytestmark = pytest.mark.slow

FLAGS: Flags = BASE | {"train_type": "full", "learning_rate": 1e-3, "save_total_limit": 2}
NOT_WRITTEN = "could not be written"
HALF = 200_000
"""Bytes: about half of a checkpoint of this run."""


LEAVING = pytest.mark.parametrize(
    "leave",
    [
        pytest.param(HALF, id="in the middle of a save"),
        pytest.param(0, id="to the last byte", marks=pytest.mark.faults),
    ],
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if sys.platform != "linux":
        pytest.skip("only Linux has a tmpfs")
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode and "permi" in done.stderr:  # "permission denied", "must be superuser", "not permitted"
        pytest.skip(f"a small filesystem may not be mounted here: {done.stderr.strip()}")
    assert not done.returncode, done.stderr
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Lets the filler file take what is free beyond ``leave`` bytes."""
    filler = disk / "filler"
    with filler.open("ab") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        if free > leave:
            size = file.tell()
            try:
                os.posix_fallocate(file.fileno(), size, free - leave)
            except OSError:  # the run was quicker; it is called again
                os.truncate(filler, size)
    return filler


def starve(training: Training, disk: Path, leave: int) -> Path:
    """Fills the disk once two checkpoints are there, and keeps it full until the run has said so."""
    assert training.wait_for(lambda run: len(runs.checkpoints(run)) >= 2), training.said

    def noticed(_: Path) -> bool:
        fill(disk, leave)
        time.sleep(0.01)
        return NOT_WRITTEN in training.said

    assert training.wait_for(noticed), training.said
    return fill(disk, leave)


def assert_last_is_whole(run: Path) -> int:
    """Returns the step of the newest checkpoint."""
    for folder in runs.checkpoints(run).values():
        runs.assert_whole(folder)
    return max(runs.checkpoints(run))


def test_what_checkpoints_need_is_said_before_training(world: World, disk: Path) -> None:
    said = world.finish(FLAGS | {"output_dir": disk / "out", "save_strategy": "epoch"})
    before = said.split("loss: ")[0].splitlines()
    assert [line for line in before if "checkpoint" in line.lower() and "free" in line], said


@LEAVING
def test_a_full_disk_that_gets_room_again(leave: int, world: World, disk: Path, tried: Callable[[str], None]) -> None:
    whole = world.whole_run("on a disk", FLAGS)
    with world.start(FLAGS | {"output_dir": disk / "out"}) as training:
        starve(training, disk, leave).unlink()
        code, said = training.end()
    assert code == 0, said
    assert "Traceback" not in said
    run = runs.newest_run(disk / "out")
    last = assert_last_is_whole(run)
    assert last == max(runs.checkpoints(whole))
    assert runs.weights_of(run / f"checkpoint-{last}") == runs.weights_of(whole / f"checkpoint-{last}")
    assert len(runs.checkpoints(run)) <= 2
    runs.assert_nothing_partial(run)
    assert any(NOT_WRITTEN in log.read_text() for log in run.glob("*log*"))
    tried("disks that filled up and got room again")


@LEAVING
def test_a_disk_that_stays_full(leave: int, world: World, disk: Path, tried: Callable[[str], None]) -> None:
    whole = world.whole_run("on a disk", FLAGS)
    with world.start(FLAGS | {"output_dir": disk / "out"}) as training:
        filler = starve(training, disk, leave)
        code, said = training.end()
    assert code == 1, said
    assert "Traceback" not in said
    assert NOT_WRITTEN in said.splitlines()[-1] or NOT_WRITTEN in said.splitlines()[-2]
    run = runs.newest_run(disk / "out")
    assert 2 <= assert_last_is_whole(run) < max(runs.checkpoints(whole))
    filler.unlink()
    world.finish(FLAGS | {"output_dir": disk / "out", "resume_from_checkpoint": "true"})
    runs.assert_same(run, whole)
    tried("disks that stayed full until the end, then resumed with the same bits")


@pytest.mark.faults
def test_interrupting_on_a_full_disk(world: World, disk: Path, tried: Callable[[str], None]) -> None:
    with world.start(FLAGS | {"output_dir": disk / "out", "num_train_epochs": 1000}) as training:
        starve(training, disk, HALF)
        training.process.send_signal(signal.SIGTERM)
        code, said = training.end()
    assert code in (1, 143), said
    assert "Traceback" not in said
    last = assert_last_is_whole(runs.newest_run(disk / "out"))
    assert f"checkpoint-{last}" in said.splitlines()[-1], "the line that goes on names a checkpoint that is there"
    tried("interruptions on a full disk")


def test_a_disk_without_any_room(world: World, disk: Path, tried: Callable[[str], None]) -> None:
    fill(disk, 0)
    with world.start(FLAGS | {"output_dir": disk / "out"}) as training:
        code, said = training.end()
    assert code in (1, 2), said
    assert "Traceback" not in said
    assert "error: " in said.splitlines()[-1]
    assert str(disk) in said.splitlines()[-1]
    tried("disks that were full from the start")
