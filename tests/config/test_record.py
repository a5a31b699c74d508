"""args.json: written, read back, run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftune.config import InferArguments, PtArguments, SftArguments, TemplateArguments, load, save
from swiftune.config.declare import Arguments, arguments_of
from swiftune.config.parse import parse
from swiftune.errors import ArgumentsError, OutputError

texts = st.text(st.characters(codec="utf-8"), max_size=20)
SOME = {
    "system": texts,
    "model": texts,
    "dataset": st.lists(texts, min_size=1, max_size=3),
    "columns": st.none() | st.dictionaries(texts, texts, max_size=3),
    "learning_rate": st.floats(0, allow_infinity=False),
    "lora_rank": st.integers(1, 10**30),
    "use_dora": st.booleans(),
    "gradient_checkpointing": st.sampled_from([True, False, "auto"]),
    "torch_dtype": st.sampled_from([None, "float16", "bfloat16"]),
    "lr_scheduler_kwargs": st.none() | st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False) | texts),
    "model_name": st.none() | st.lists(texts, min_size=1, max_size=2),
}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({}, optional=SOME), cls=st.sampled_from([SftArguments, PtArguments]))
def test_what_is_written_is_read_back(tmp_path: Path, values: dict[str, Any], cls: type[SftArguments]) -> None:
    args = cls.model_validate(values, context="recorded")
    save(args, tmp_path / "args.json")
    again = load(tmp_path / "args.json", cls)
    assert again.model_dump() == args.model_dump()
    assert again.model_fields_set >= {name for name in args.model_fields_set if getattr(args, name) is not None}
    assert list(tmp_path.iterdir()) == [tmp_path / "args.json"]


def test_a_system_prompt_that_ends_like_a_file_name_stays_a_text(tmp_path: Path) -> None:
    save(SftArguments.model_validate({"system": "Answer in a.txt"}, context="recorded"), tmp_path / "args.json")
    assert load(tmp_path / "args.json", TemplateArguments).system == "Answer in a.txt"


@pytest.mark.parametrize("cls", [SftArguments, PtArguments, InferArguments])
def test_a_run_can_be_run_again_from_it(tmp_path: Path, cls: type[Arguments]) -> None:
    line = [
        "--val_dataset",
        "v",
        *(["--dataset", "d", "--train_type", "full"] if "train_type" in arguments_of(cls) else []),
    ]
    args = parse(cls, line)
    save(args, tmp_path / "args.json")
    assert parse(cls, ["--config", str(tmp_path / "args.json")]) == args
    assert set(json.loads((tmp_path / "args.json").read_text("utf-8"))) == set(cls.model_fields)


def test_names_of_newer_versions_and_of_ms_swift_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("swiftune.config.record.notice", said.append)
    file = tmp_path / "args.json"
    file.write_text(
        json.dumps(
            {"system": "s", "tuner_type": "full", "lora_rank": 3, "hologram": 1, "max_length": None, "freeze_vit": True}
        )
    )
    assert load(file, TemplateArguments).system == "s"
    assert load(file, SftArguments).max_length == 2048
    assert said == [f"{file} has arguments that this version does not know and passes over: hologram."] * 2


def test_a_value_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "args.json"
    file.write_text('{"system": "s",\n "lora_rank": "x"}')
    assert load(file, TemplateArguments).system == "s"
    with pytest.raises(ArgumentsError, match=r"args.json:2: lora_rank takes a whole number above 0, not 'x'"):
        load(file, SftArguments)
    file.write_text('{"system": ')
    with pytest.raises(ArgumentsError, match=r"args.json:1: this is not JSON"):
        load(file, SftArguments)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        save(SftArguments(), tmp_path / "gone" / "args.json")
