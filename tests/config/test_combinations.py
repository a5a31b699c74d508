"""The command line of a sweep: which runs it means, and every way in which it can be wrong."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.config import SftArguments, SweepArguments
from swiftune.config.combinations import MOST, parse
from swiftune.config.parse import parse as parse_command
from swiftune.config.swept import Run, Sweep, as_words
from swiftune.errors import ArgumentsError

AXES: dict[str, st.SearchStrategy[Any]] = {
    "lora_rank": st.integers(1, 512),
    "lora_alpha": st.integers(1, 512),
    "learning_rate": st.floats(1e-7, 1.0),
    "warmup_ratio": st.floats(0, 1),
    "system": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
        lambda text: not text.startswith("--") and not text.endswith(".txt")
    ),
    "use_rslora": st.booleans(),
}
"""Flags, and values that they take."""
values = st.fixed_dictionaries(
    {},
    optional={
        name: st.lists(each, min_size=2, max_size=2 if name == "use_rslora" else 3, unique=True)
        for name, each in AXES.items()
    },
).filter(bool)


def read(line: str | list[str]) -> Sweep:
    return parse(SweepArguments, shlex.split(line) if isinstance(line, str) else line)


def runs(line: str | list[str]) -> list[Run]:
    sweep = read(line)
    return [sweep.run(points) for points in sweep.grid()]


def wrong(line: str | list[str]) -> list[str]:
    with pytest.raises(ArgumentsError) as caught:
        read(line)
    assert caught.value.exit_code == 2
    return caught.value.mistakes


def typed(axes: dict[str, list[Any]]) -> list[str]:
    def word(value: Any) -> str:
        return (
            str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)
        )

    return [each for name, axis in axes.items() for each in (f"--{name}", *map(word, axis))]


@settings(deadline=None, max_examples=40)
@given(values)
def test_a_grid_has_every_combination_once(axes: dict[str, list[Any]]) -> None:
    found = runs(["sft", "--dataset", "a", "b", *typed(axes)])
    assert len(found) == math.prod(map(len, axes.values()))
    assert len({run.name for run in found}) == len(found)
    for name, axis in axes.items():
        for value in axis:
            share = sum(run.given[name] == value for run in found)
            assert share == len(found) // len(axis)
    assert all(run.given["dataset"] == ["a", "b"] for run in found)


@settings(deadline=None, max_examples=40)
@given(values, st.data())
def test_zip_walks_flags_together_and_the_others_make_the_grid(axes: dict[str, list[Any]], data: st.DataObject) -> None:
    zipped = data.draw(st.lists(st.sampled_from(sorted(axes)), min_size=2, unique=True)) if len(axes) > 1 else []
    least = min((len(axes[name]) for name in zipped), default=0)
    axes = {name: axis[:least] if name in zipped else axis for name, axis in axes.items()}
    found = runs(["sft", "--dataset", "a", *typed(axes), *(["--zip", *zipped] if zipped else [])])
    others = math.prod(len(axis) for name, axis in axes.items() if name not in zipped)
    assert len(found) == max(least, 1) * others
    walked = list(zip(*(axes[name] for name in zipped), strict=True))
    assert {tuple(run.given[name] for name in zipped) for run in found} == set(walked or [()])


@settings(deadline=None, max_examples=40)
@given(values)
def test_the_command_of_a_run_means_what_the_sweep_meant(axes: dict[str, list[Any]]) -> None:
    for run in runs(["sft", "--dataset", "a", *typed(axes)]):
        args = parse_command(SftArguments, run.words)
        assert {name: getattr(args, name) for name in axes} == {name: run.given[name] for name in axes}


def test_the_example_of_the_walk_throughs() -> None:
    line = "sft --dataset a --lora_rank 4 8 16 32 --lora_alpha 16 32 64 128 --zip lora_rank lora_alpha"
    assert [run.name for run in runs(line)] == [
        "lora_rank=4,lora_alpha=16",
        "lora_rank=8,lora_alpha=32",
        "lora_rank=16,lora_alpha=64",
        "lora_rank=32,lora_alpha=128",
    ]
    assert len(runs(line.split(" --zip")[0])) == 16


def test_values_in_a_file_and_what_the_command_line_says_over_it(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("dataset: [a, b]\nlora_rank: [4, 8]\nlora_alpha: [16, 32]\nzip: [lora_rank, lora_alpha]\n")
    assert [run.given for run in runs(["sft", str(file)])] == [
        {"dataset": ["a", "b"], "lora_rank": 4, "lora_alpha": 16},
        {"dataset": ["a", "b"], "lora_rank": 8, "lora_alpha": 32},
    ]
    file.write_text("dataset: [a, b]\nlora_rank: [4, 8]\nlora_alpha: 16\n")
    assert [
        run.given["lora_alpha"] for run in runs(["sft", str(file), "--lora_rank", "2", "--lora_alpha", "1", "2"])
    ] == [1, 2]
    as_json = tmp_path / "sweep.json"
    as_json.write_text(json.dumps({"dataset": "a", "learning_rate": [1e-4, 1e-3]}))
    assert [run.given["learning_rate"] for run in runs(["sft", str(as_json)])] == [1e-4, 1e-3]


def test_a_flag_that_takes_a_list_is_swept_by_name() -> None:
    found = runs(
        ["sft", "--sweep", '{"dataset": ["a", ["a", "b"]], "target_modules": [["q_proj"], ["q_proj", "v_proj"]]}']
    )
    assert [(run.given["dataset"], run.given["target_modules"]) for run in found] == [
        (["a"], ["q_proj"]),
        (["a"], ["q_proj", "v_proj"]),
        (["a", "b"], ["q_proj"]),
        (["a", "b"], ["q_proj", "v_proj"]),
    ]


def test_folders_are_fit_for_a_disk_and_differ() -> None:
    texts = ["../../x", "你是谁", "a" * 300, "a" * 301]
    names = [run.name for run in runs(["sft", "--dataset", "a", "--system", *texts])]
    assert len(set(names)) == 4
    assert all("/" not in name and len(name) < 120 and name.isascii() for name in names)


def test_older_spellings_are_swept_too() -> None:
    assert [run.given["train_type"] for run in runs("sft --dataset a --sft_type lora full")] == ["lora", "full"]


def test_what_decides_is_the_loss_of_the_evaluation_if_there_is_one() -> None:
    assert read("sft --dataset a --lora_rank 4 8").metric == "train_loss"
    assert read("sft --dataset a --lora_rank 4 8 --val_dataset b").metric == "eval_loss"
    assert read("sft --dataset a --lora_rank 4 8 --val_dataset b --sweep_metric eval_acc").metric == "eval_acc"
    task = "sft --dataset a --lora_rank 4 8 --eval_dataset c.jsonl --metric exact my.py:f --sweep_metric eval_c_f"
    assert read(task).metric == "eval_c_f"


@pytest.mark.parametrize(
    ("line", "mistakes"),
    [
        ("", ["swift sweep needs the command that it is to run first: sft or pt."]),
        ("--lora_rank 4 8", ["swift sweep needs the command that it is to run first: sft or pt."]),
        ("stf --lora_rank 4 8", ["swift sweep runs sft or pt, not 'stf'; did you mean sft?"]),
        ("infer --temperature 0 1", ["swift sweep runs sft or pt, not 'infer'."]),
        (
            "sft --dataset a b --lora_rank 4",
            ["Nothing is swept: give a flag several values, such as --lora_rank 4 8 16."],
        ),
        (
            "sft --dataset a --lora_rank 4 8 16 --lora_alpha 8 16 --zip lora_rank lora_alpha",
            ["--zip walks its flags together, so each needs as many values: lora_rank has 3, lora_alpha has 2."],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --lora_alpha 8 16 --zip lora_rank lora_alpa",
            ["--zip names lora_alpa, which is no flag; did you mean lora_alpha?"],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --lora_alpha 8 --zip lora_rank lora_alpha",
            ["--zip names lora_alpha, which does not have several values."],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --zip lora_rank",
            ["--zip needs two flags or more, which are walked together."],
        ),
        ("sft --dataset a --lora_rnk 4 8", ["--lora_rnk is unknown; did you mean --lora_rank?"]),
        ("sft --dataset a --lora_rank 4 8 --sweep_jbs 2", ["--sweep_jbs is unknown; did you mean --sweep_jobs?"]),
        ("sft --dataset a --lora_rank 4 8 4", ["lora_rank 4 comes twice."]),
        ("sft --dataset a --learning_rate 1e-4 0.0001", ["learning_rate 0.0001 comes twice."]),
        (
            "sft --dataset a --learning_rate 1e-5..1e-3",
            ["--learning_rate 1e-05..0.001 is a range: say how many runs, --sweep_trials 20."],
        ),
        (
            "sft --dataset a --learning_rate 1e-3..1e-5 --sweep_trials 2",
            ["--learning_rate takes a number, 0 or more, not '1e-3..1e-5'."],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --sweep_metric eval_loss",
            ["--sweep_metric eval_loss needs rows to evaluate on: --val_dataset or --split_dataset_ratio."],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --sweep_metric train_los",
            ["--sweep_metric train_los is no figure of a run; did you mean train_loss?"],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --val_dataset b --sweep_metric eval_lss",
            ["--sweep_metric eval_lss is no figure of a run; did you mean eval_loss?"],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --eval_dataset sums.jsonl --sweep_metric eval_sms",
            ["--sweep_metric eval_sms is no figure of a run; did you mean eval_sums?"],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --resume_from_checkpoint true",
            ["--resume_from_checkpoint has no place in a sweep: run the same sweep again, and it goes on."],
        ),
        (
            """sft --dataset a --sweep '{"dataset": ["a", "b"]}'""",
            ["--sweep dataset and --dataset are at odds: give its values once."],
        ),
        ("""sft --dataset a --sweep '{"lora_rank": 4}'""", ["--sweep lora_rank needs a list of values, in brackets."]),
        ("""sft --dataset a --sweep '{"output_dir": ["a", "b"]}'""", ["--sweep output_dir cannot be swept."]),
        (
            """sft --dataset a --sweep '{"lora_rnk": [4, 8]}'""",
            ["--sweep lora_rnk is unknown; did you mean --lora_rank?"],
        ),
        (
            "sft --dataset a --lora_rank 4 8 --output_dir a b",
            ["--output_dir takes one value; 'b' is left over. Put quotes round a value with spaces."],
        ),
        (  # right one by one, wrong together
            "sft --dataset a --train_type lora full --freeze_parameters_ratio 0 0.5",
            ["--freeze_parameters… and --train_type lora are at odds: LoRA freezes all weights of the model."],
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(line: str, mistakes: list[str]) -> None:
    assert wrong(line) == mistakes


def test_all_mistakes_are_told_at_once() -> None:
    line = "sft --lora_rank 4 eight --lora_dropout 0.1 2 --zip lora_rank lora_dropot --sweep_jobs none --warmup 1 2"
    assert wrong(line) == [
        "--sweep_jobs takes a whole number above 0, not 'none'.",
        "--zip names lora_dropot, which is no flag; did you mean lora_dropout?",
        "--warmup is unknown; did you mean --warmup_steps?",
        "--dataset is missing: name the rows to train on, such as --dataset rows.jsonl.",
        "--lora_rank takes a whole number above 0, not 'eight'.",
        "--lora_dropout takes a number from 0 to less than 1, not '2'.",
    ]


def test_a_grid_beyond_all_bounds() -> None:
    many = " ".join(map(str, range(1, MOST // 10)))
    (mistake,) = wrong(f"sft --dataset a --lora_rank {many} --lora_alpha {many} --seed {many}")
    assert mistake.startswith("That is 970,299 combinations, and at most 1,000 are run")


def test_a_search_takes_ranges_within_their_bounds() -> None:
    sweep = read("sft --dataset a --learning_rate 1e-5..1e-3 --lora_rank 4..64 --sweep_trials 5 --lora_alpha 8 16")
    rate, rank, alpha = sweep.dimensions
    assert (str(rate), str(rank)) == ("1e-05..0.001", "4..64")
    assert [getattr(each, "log", None) for each in (rate, rank)] == [True, True]
    assert [getattr(each, "whole", None) for each in (rate, rank)] == [False, True]
    assert len(alpha.corners) == 2
    assert wrong("sft --dataset a --lora_dropout 0.1..1.5 --sweep_trials 2") == [
        "--lora_dropout takes a number from 0 to less than 1, not '1.5'."
    ]


PARTS = ["--lora_rank", "--learning_rate", "--zip", "--sweep", "--sweep_trials", "--use_dora", "--dataset", "--config"]
PARTS += ["a", "4", "8", "1e-5..1e-3", "9..1", "true", '{"seed":[1,2]}', '{"dataset":[[]]}', "[]", "-lora_rank"]
PARTS += ["lora_rank", "learning_rate", "missing.yaml"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12))
def test_any_words_are_a_sweep_or_a_mistake(line: list[str]) -> None:
    try:
        sweep = read(["sft", *line])
    except ArgumentsError:
        return
    assert sweep.dimensions
    assert sweep.first.values


def test_an_empty_list_is_what_the_flag_is_without() -> None:
    assert as_words("stop_words", []) == []
    assert as_words("system", "-x") == ["--system=-x"]
    assert as_words("columns", {"a": "b"}) == ["--columns", '{"a": "b"}']
