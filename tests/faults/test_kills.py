"""A training that is killed at any moment, and resumed, ends with the bits of one that was not.

Each case is a setting, a seed, and the kinds of moments at which the whole process group gets SIGKILL, one after the
other in one run. The seed draws how far the run gets before each. Every failure prints what was drawn and the commands.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults import runs
from tests.faults.runs import Training, World
from tests.recipes.chats import Flags

BASE: Flags = {
    "model": "model",
    "dataset": "a.jsonl",
    "torch_dtype": "float32",
    "num_train_epochs": 3,  # of 4 steps of 2 rows
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lora_dropout": 0.1,
    "lora_rank": 4,
    "save_steps": 1,
    "logging_steps": 1,
}
MIXED: Flags = {"dataset": ["a.jsonl#5", "b.jsonl#3"]}
STREAM: Flags = {"streaming": "true", "max_steps": 12, "shuffle_buffer_size": 5}
BOTH: Flags = {"dataset": ["a.jsonl", "b.jsonl"], "interleave_prob": [0.7, 0.3]}
JUDGED: Flags = {"val_dataset": "c.jsonl", "eval_steps": 1}

SETTINGS: dict[str, Flags] = {
    "lora": {},
    "bf16 and NEFTune": {"torch_dtype": "bfloat16", "neftune_noise_alpha": 5},
    "full": {"train_type": "full", "neftune_noise_alpha": 5, "learning_rate": 1e-3},
    "full in bf16": {"train_type": "full", "torch_dtype": "bfloat16", "learning_rate": 1e-3},
    "mixed": MIXED,
    "packed tightly": MIXED | {"max_tokens_per_batch": 96, "dataset": ["a.jsonl#16", "b.jsonl#50%", "c.jsonl#5"]},
    "two processes": {"NPROC_PER_NODE": 2, "gradient_accumulation_steps": 1},
    "two processes, full": {"NPROC_PER_NODE": 2, "train_type": "full", "max_tokens_per_batch": 96, **MIXED},
    "stream": STREAM,
    "stream of two": STREAM | BOTH,
    "stream of two to the last row": STREAM | BOTH | {"stopping_strategy": "all_exhausted", "train_type": "full"},
    "stream, two processes": STREAM | BOTH | {"NPROC_PER_NODE": 2, "gradient_accumulation_steps": 1},
    "logging between saves": {"logging_steps": 5, "save_steps": 2},
    "saves between epochs": {"save_strategy": "epoch", "logging_steps": 3},
    "the last one is kept": {"save_total_limit": 1},
    "the best of two": JUDGED | {"save_total_limit": 2, "learning_rate": 0.3},
    "answers written": JUDGED | {"predict_with_generate": "true", "max_new_tokens": 4, "eval_steps": 3},
    "GaLore": {"train_type": "full", "use_galore": "true", "galore_rank": 4, "galore_update_proj_gap": 5},
    "DoRA": {"use_dora": "true", "modules_to_save": "lm_head"},
    "two lanes": {"OMP_NUM_THREADS": 2, "neftune_noise_alpha": 5},
    "in a folder of its own": {"add_version": "false", "optim": "adafactor"},
}

CASES: list[tuple[str, str]] = [
    ("lora", "saving stepping saving"),
    ("lora", "starting stepping starting stepping"),
    ("bf16 and NEFTune", "stepping saving"),
    ("full in bf16", "saving saving"),
    ("full", "saving stepping"),
    ("mixed", "stepping stepping stepping"),
    ("packed tightly", "saving stepping"),
    ("two processes", "stepping saving"),
    ("two processes", "saving starting saving"),
    ("two processes, full", "saving stepping"),
    ("stream", "stepping saving"),
    ("stream of two", "saving stepping saving"),
    ("stream of two to the last row", "stepping saving"),
    ("stream, two processes", "stepping saving"),
    ("logging between saves", "stepping saving stepping"),
    ("saves between epochs", "stepping stepping"),
    ("the last one is kept", "saving saving saving"),
    ("the last one is kept", "stepping saving"),
    ("the best of two", "saving saving stepping"),
    ("the best of two", "saving saving saving"),
    ("answers written", "stepping saving"),
    ("GaLore", "saving stepping"),
    ("DoRA", "stepping saving"),
    ("in a folder of its own", "saving stepping"),
    ("two lanes", "saving stepping saving"),
]
PART = {0, 3, 8, 12, 24}
"""The cases that `make test` runs too."""


def case(number: int, setting: str, kinds: str) -> Any:
    marks = [pytest.mark.slow, *([] if number in PART else [pytest.mark.faults])]
    return pytest.param(number, setting, kinds.split(), marks=marks, id=f"{number}: {setting}")


@pytest.mark.parametrize(("seed", "setting", "kinds"), [case(n, *row) for n, row in enumerate(CASES)])
def test_a_killed_run_ends_with_the_same_bits(
    seed: int, setting: str, kinds: list[str], world: World, tmp_path: Path, tried: Callable[[str], None]
) -> None:
    flags = BASE | SETTINGS[setting]
    whole = world.whole_run(setting, flags)
    last = max(runs.checkpoints(whole))
    flags |= {"output_dir": tmp_path / "out"}
    print(f"case {seed} ({setting}): {', '.join(kinds)}; to compare with: {whole}")

    dice, newest = random.Random(seed), 0
    for number, kind in enumerate(kinds):
        # Somewhere in its share of the steps; not the last one, or nothing would be left to do.
        aim = int(last * (number + dice.random()) / len(kinds))
        with world.start(flags) as training:
            assert MOMENTS[kind](training, min(aim, last - 2), dice), f"ended before the kill:\n{training.end()}"
            training.kill()
        tried(f"kills while {kind}")
        newest, flags = look_at(tmp_path / "out", world, newest, flags)
    with world.start(flags) as training:
        code, said = training.end()
    assert code == 0 or (newest == last and "nothing is left to do" in said), said
    run = runs.newest_run(tmp_path / "out")
    runs.assert_same(run, whole)
    runs.assert_opens(runs.checkpoints(run)[last], world.folder / "model")
    tried("killed and resumed runs, byte-identical to one that was not")


@pytest.mark.slow
@pytest.mark.faults
def test_one_process_of_two_is_killed(world: World, tmp_path: Path, tried: Callable[[str], None]) -> None:
    flags = BASE | SETTINGS["two processes"]
    whole = world.whole_run("two processes", flags)
    flags |= {"output_dir": tmp_path / "out"}
    with world.start(flags) as training:
        assert training.wait_for(lambda run: len(runs.checkpoints(run)) >= 3), training.said
        psutil.Process(training.process.pid).children()[1].kill()
        code, said = training.end()
    assert code == 128 + signal.SIGKILL, said
    assert "Traceback" not in said
    assert "error: " in said.splitlines()[-1]
    _, flags = look_at(tmp_path / "out", world, 0, flags)
    world.finish(flags)
    runs.assert_same(runs.newest_run(tmp_path / "out"), whole)
    tried("kills of one process of two")


def look_at(output: Path, world: World, before: int, flags: Flags) -> tuple[int, Flags]:
    """Holds what a kill left against what is promised.

    Returns:
        The newest checkpoint's step (0: none), and the flags with which a user goes on.
    """
    run = runs.newest_run(output) if runs.runs_in(output) else output
    found = runs.checkpoints(run) if run.exists() else {}
    for folder in found.values():
        runs.assert_whole(folder)
    newest = max(found, default=0)
    print(
        f"# killed: logged up to step {runs.logged(run)}, checkpoints {list(found)}, partial {list(runs.saving(run))}"
    )
    assert newest >= before, "a checkpoint was deleted before the next was complete"
    runs.best(run)
    if newest:
        runs.assert_opens(found[newest], world.folder / "model")
        return newest, flags | {"resume_from_checkpoint": "true"}
    return 0, flags


def while_starting(training: Training, aim: int, dice: random.Random) -> bool:
    """Before the first step, or about then: at any time of the seconds that a start takes."""
    time.sleep(dice.uniform(0.5, 5))
    return training.process.poll() is None


def while_stepping(training: Training, aim: int, dice: random.Random) -> bool:
    """At any time between the log's line for step ``aim`` and the next line or two."""
    first: list[int] = []  # what a resumed run finds there is not its own

    def further(run: Path) -> bool:
        steps = max(runs.logged(run), *runs.checkpoints(run), *runs.saving(run), 0)
        first.append(steps)
        return steps > max(aim, first[0])

    seen = training.wait_for(further)
    time.sleep(dice.uniform(0, 0.3))
    return seen and training.process.poll() is None


def while_saving(training: Training, aim: int, dice: random.Random) -> bool:
    """In the middle of a save after step ``aim``: at once, or up to 20 ms later."""
    seen = training.wait_for(
        lambda run: any(step > aim for step, _ in runs.saving(run).items() - training.left.items())
    )
    time.sleep(dice.choice([0, dice.uniform(0, 0.02)]))
    return seen and training.process.poll() is None


MOMENTS: dict[str, Callable[[Training, int, random.Random], bool]] = {
    "starting": while_starting,
    "stepping": while_stepping,
    "saving": while_saving,
}
