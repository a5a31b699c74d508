"""``run.log``: what a run said, and what nobody expected of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from swiftune import __version__
from swiftune.train.loop import Trainer
from tests.recipes.chats import Flags, chats, run_of, sft, write_jsonl


@pytest.fixture
def base(tiny_qwen2: Path, tmp_path: Path) -> Flags:
    return {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", [*chats(4), {"messages": []}]),
        "torch_dtype": "float32",
        "max_bad_rows": 1,
        "max_steps": 2,
        "save_steps": 1,
        "dataloader_num_workers": 4,
        "output_dir": tmp_path / "out",
    }


def test_it_has_what_the_run_said(base: Flags, tmp_path: Path) -> None:
    assert sft(base) == 0
    run = run_of(tmp_path / "out")
    lines = [line[24:] for line in (run / "run.log").read_text().splitlines()]  # without the time
    order = [
        f"INFO     swift sft --model {base['model']} ",
        "INFO     5 rows read = 4 used + 1 set aside",
        "INFO     16,384 of 129,600 parameters are trained",
        f"INFO     Done. The run is in {run}",
    ]
    found = [next(i for i, line in enumerate(lines) if line.startswith(beginning)) for beginning in order]
    assert found == sorted(found)
    assert any("--dataloader_num_workers has no effect" in line for line in lines)
    assert sft(base, resume_from_checkpoint=run / "checkpoint-2", max_steps=3, resume_anyway="true") == 0
    assert (run / "run.log").read_text().count("Done. The run is in") == 2


@pytest.mark.parametrize("step", [1, 2])
def test_a_fault_is_explained_in_it(
    base: Flags, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = Trainer._step

    def fail(trainer: Trainer) -> None:
        if trainer.state.step == step - 1:
            raise ZeroDivisionError("oh")
        whole(trainer)

    monkeypatch.setattr(Trainer, "_step", fail)
    assert sft(base) == 1
    run = run_of(tmp_path / "out")
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-2:] == [
        f"error: this is a fault of Swiftune {__version__}, not yours: ZeroDivisionError: oh",
        f"Please report it with {run}/run.log.",
    ]
    log = (run / "run.log").read_text()
    assert log.count("Traceback") == 1
    assert log.endswith("ZeroDivisionError: oh\n")
    assert step > 1 or [path.name for path in run.iterdir()] == ["run.log"]


def test_a_mistake_before_the_first_step_leaves_no_folder(base: Flags, tmp_path: Path) -> None:
    assert sft(base, target_modules="nowhere") == 2
    assert not list((tmp_path / "out").iterdir())
