from __future__ import annotations

import doctest
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from swiftune.config import InferArguments
from swiftune.errors import AdapterError
from swiftune.recipes import checkpoint_args
from swiftune.recipes.checkpoint_args import resolve
from swiftune.runtime import console


@pytest.fixture(autouse=True)
def _says_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_said", set())


def adapter_folder(folder: Path, base: str | None, **recorded: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if recorded:
        (folder / "args.json").write_text(json.dumps(recorded))
    return folder


def test_names_of_one_model() -> None:
    assert doctest.testmod(checkpoint_args).failed == 0
    assert checkpoint_args._name("a/Qwen2-7B") != checkpoint_args._name("a/Qwen2-7B-Instruct")


def test_args_json_fills_what_the_command_line_leaves_open(tmp_path: Path) -> None:
    folder = adapter_folder(
        tmp_path / "checkpoint-5",
        "org/Base",
        model="org/Base",
        template="chatml",
        system="Talk like notes.txt",
        torch_dtype="bfloat16",
        enable_thinking=None,
        max_length=2048,
        temperature=0.3,
        trust_remote_code=True,
        dataset=["rows.jsonl"],
    )
    resolved = resolve(InferArguments(adapters=[str(folder)], template="mine.jinja", temperature=0))
    assert resolved.adapters == [resolved.home] == [folder]
    args = resolved.args
    assert (args.model, args.system, args.torch_dtype) == ("org/Base", "Talk like notes.txt", "bfloat16")
    assert (args.template, args.temperature) == ("mine.jinja", 0)  # given, so it wins
    assert args.max_length is None  # that of training bounds no chat
    assert args.dataset == []
    assert args.trust_remote_code is False  # never taken from a folder


def test_an_explicit_default_wins(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", "org/Base", model="org/Base", template="chatml")
    assert resolve(InferArguments(adapters=[str(folder)], template="auto")).args.template == "auto"


def test_data_arguments_are_taken_when_asked_for(tmp_path: Path) -> None:
    folder = adapter_folder(
        tmp_path / "a", "org/Base", model="org/Base", dataset=["a#5"], split_dataset_ratio=0.1, columns={"q": "query"}
    )
    args = resolve(InferArguments(adapters=[str(folder)], load_data_args=True)).args
    assert (args.dataset, args.split_dataset_ratio, args.columns) == (["a#5"], 0.1, {"q": "query"})


def test_without_args_json_the_adapter_names_its_base(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", "org/Base")
    assert resolve(InferArguments(adapters=[str(folder)])).args.model == "org/Base"
    with pytest.raises(AdapterError, match="does not say which model"):
        resolve(InferArguments(adapters=[str(adapter_folder(tmp_path / "b", None))]))


def test_a_base_that_moved(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", "/gone/Base", model="/gone/Base")
    with pytest.raises(AdapterError, match=r"/gone/Base, which is not there any more\. Name the model with --model"):
        resolve(InferArguments(adapters=[str(folder)]))
    assert resolve(InferArguments(adapters=[str(folder)], model="org/Base")).args.model == "org/Base"


def test_another_base_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter_folder(tmp_path / "a", "/models/Qwen2-7B")
    resolve(InferArguments(adapters=[str(folder)], model="Qwen/Qwen2-7B"))
    assert capsys.readouterr().err == ""
    resolve(InferArguments(adapters=[str(folder)], model="Qwen/Qwen2-7B-Instruct"))
    assert "was made for /models/Qwen2-7B, and is put onto Qwen/Qwen2-7B-Instruct" in capsys.readouterr().err


def test_a_runs_folder_means_its_best_or_last_checkpoint(tmp_path: Path) -> None:
    for step in (5, 50, 100):
        adapter_folder(tmp_path / f"checkpoint-{step}", "org/Base")
    args = InferArguments(adapters=[str(tmp_path)])
    assert resolve(args).adapters == [tmp_path / "checkpoint-100"]
    (tmp_path / "checkpoint-best").symlink_to("checkpoint-50")
    assert resolve(args).adapters == [tmp_path / "checkpoint-50"]


def test_a_fully_tuned_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-7"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "args.json").write_text(json.dumps({"model": "org/Base", "system": "Be brief.", "torch_dtype": None}))
    for name in (folder, folder.parent):
        resolved = resolve(InferArguments(model=str(name)))
        assert (resolved.adapters, resolved.home) == ([], folder)
        assert (resolved.args.model, resolved.args.system) == (str(folder), "Be brief.")


def test_folders_that_are_no_adapter(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    whole = adapter_folder(tmp_path / "whole", "org/Base")
    (bare := Path(shutil.copytree(whole, tmp_path / "bare"))).joinpath("adapter_model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    for name, words in {
        "model": "is a whole model, not an adapter",
        "bare": "has no adapter_model.safetensors",
        "empty": "has no adapter_config.json",
        "nowhere": "no such folder",
    }.items():
        with pytest.raises(AdapterError, match=words):
            resolve(InferArguments(adapters=[str(tmp_path / name)]))
    assert bare.exists()


def test_values_of_other_programs_are_told_and_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter_folder(tmp_path / "a", "org/Base", model="org/Base", torch_dtype="int8", system="Be brief.")
    args = resolve(InferArguments(adapters=[str(folder)])).args
    assert (args.torch_dtype, args.system) == (None, "Be brief.")
    assert "torch_dtype 'int8' means nothing here" in capsys.readouterr().err
    (folder / "args.json").write_text("{")
    with pytest.raises(AdapterError, match=r"args\.json cannot be read"):
        resolve(InferArguments(adapters=[str(folder)]))
