"""Checkpoints and logs that something else than Swiftune has damaged: refused by name, never taken for whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import runs
from tests.faults.runs import World
from tests.faults.test_kills import BASE
from tests.recipes.chats import swift

LAST = 8
"""The newest checkpoint of the run that is damaged, which had 12 steps to do."""


@pytest.fixture
def stopped(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed after step 8."""
    whole = world.whole_run("lora", BASE)
    run = tmp_path / "out" / whole.name
    shutil.copytree(whole, run, symlinks=True)
    for step, folder in runs.checkpoints(run).items():
        if step > LAST:
            shutil.rmtree(folder)
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("SWIFTUNE_CACHE", str(world.folder / "cache"))
    return run


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES = [
    ("optimizer.safetensors", cut_short),
    ("adapter_model.safetensors", one_bit),
    ("processes.safetensors", remove),
    ("trainer_state.json", empty),
    ("args.json", remove),
    (runs.MARKER, remove),
    (runs.MARKER, cut_short),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[f"{name} {how.__name__}" for name, how in DAMAGES])
def test_a_damaged_checkpoint_is_refused(
    name: str,
    damage: Callable[[Path], None],
    stopped: Path,
    capsys: pytest.CaptureFixture[str],
    tried: Callable[[str], None],
) -> None:
    folder = stopped / f"checkpoint-{LAST}"
    damage(folder / name)
    before = sorted(stopped.rglob("*"))
    flags = BASE | {"output_dir": stopped.parent, "resume_from_checkpoint": folder}
    code, said = swift("sft", *runs.typed(flags)), capsys.readouterr().err
    assert code == 2, said
    (mistake,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert str(folder) in mistake
    assert name in mistake
    assert sorted(stopped.rglob("*")) == before
    tried("damaged checkpoints")


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("name", "damage"), [DAMAGES[0], DAMAGES[1], DAMAGES[5]])
def test_the_newest_whole_checkpoint_is_taken(
    name: str, damage: Callable[[Path], None], stopped: Path, world: World, tried: Callable[[str], None]
) -> None:
    damage(stopped / f"checkpoint-{LAST}" / name)
    said = world.finish(BASE | {"output_dir": stopped.parent, "resume_from_checkpoint": "true"})
    assert f"checkpoint-{LAST}" in said, "that it was passed over has to be said"
    runs.assert_same(stopped, world.whole_run("lora", BASE))
    tried("damaged checkpoints")


@pytest.mark.slow
def test_what_a_kill_can_leave_of_log_and_saves(stopped: Path, world: World, tried: Callable[[str], None]) -> None:
    """A torn line; a partial folder that has all but its name."""
    with (stopped / "logging.jsonl").open("a") as log:
        log.write('{"loss": 6.1, "acc": 0.0')
    shutil.copytree(stopped / f"checkpoint-{LAST}", stopped / f".checkpoint-{LAST + 1}.partial")
    world.finish(BASE | {"output_dir": stopped.parent, "resume_from_checkpoint": "true"})
    runs.assert_same(stopped, world.whole_run("lora", BASE))
    tried("torn logs")
