"""Everything that is found without a hub. No test here asks the net: conftest sets HF_HUB_OFFLINE."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftune.errors import NotFoundError, UsageError
from swiftune.hub import find_dataset, find_model
from swiftune.hub.find import ID


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.delenv("SWIFT_LOCAL_HUB", raising=False)
    return tmp_path


@pytest.fixture
def mirror(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = home / "mirror"
    for name in ("Qwen/Qwen2.5-7B-Instruct", "AI-ModelScope/alpaca-gpt4-data-zh", "one/twin", "two/twin"):
        (root / name).mkdir(parents=True)
    monkeypatch.setenv("SWIFT_LOCAL_HUB", str(root))
    return root


def model_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


def test_a_path_comes_first(home: Path, mirror: Path) -> None:
    (home / "Qwen" / "Qwen2.5-7B-Instruct").mkdir(parents=True)
    assert find_model("Qwen/Qwen2.5-7B-Instruct") == Path("Qwen/Qwen2.5-7B-Instruct")
    (home / "rows.jsonl").touch()
    assert find_dataset("rows.jsonl") == Path("rows.jsonl")


def test_a_tilde_is_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    (home / "model").mkdir()
    assert find_model("~/model") == home / "model"


def test_the_builtin_data_set_is_packed_with_us() -> None:
    files = find_dataset("swift/self-cognition").glob("*.jsonl")
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    assert len(lines) >= 100
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "", None, "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_builtin_model_is_the_default(home: Path, name: str | None) -> None:
    made = model_in(home / "ours" / "models" / "SmolLM2-135M-Instruct")
    assert find_model(name) == made


def test_the_publishers_id_prefers_what_is_here(home: Path, mirror: Path) -> None:
    model_in(home / "ours" / "models" / "SmolLM2-135M-Instruct")
    published = model_in(mirror / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    assert find_model("HuggingFaceTB/SmolLM2-135M-Instruct") == published


def test_the_mirror_knows_ids_with_and_without_their_org(mirror: Path) -> None:
    assert find_model("Qwen/Qwen2.5-7B-Instruct") == mirror / "Qwen" / "Qwen2.5-7B-Instruct"
    assert find_model("Qwen2.5-7B-Instruct") == mirror / "Qwen" / "Qwen2.5-7B-Instruct"
    expected = mirror / "AI-ModelScope" / "alpaca-gpt4-data-zh"
    assert find_dataset("AI-ModelScope/alpaca-gpt4-data-zh") == expected


def test_two_of_a_name_are_asked_about(mirror: Path) -> None:
    with pytest.raises(UsageError, match="one/twin and two/twin. Say which"):
        find_model("twin")
    assert find_model("two/twin") == mirror / "two" / "twin"


def test_every_place_is_listed_with_a_cure(home: Path, mirror: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_model("qwen/Qwen2.5-7B-instruct")
    places = [line for line in caught.value.what.splitlines() if line.startswith("  - ")]
    for place, expected in zip(
        places,
        ("path", "built-in", str(mirror), str(home / "modelscope"), "Hugging Face", "HF_HUB_OFFLINE"),
        strict=True,
    ):
        assert expected in place
    assert "Did you mean Qwen/Qwen2.5-7B-Instruct?" in caught.value.cure
    assert "--use_hf true" in caught.value.cure
    assert "SWIFT_LOCAL_HUB" in caught.value.cure


def test_a_mirror_that_is_no_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFT_LOCAL_HUB", "/none/here")
    with pytest.raises(NotFoundError, match=r"mirror /none/here \(\$SWIFT_LOCAL_HUB\): no such folder"):
        find_model("Nobody/Nothing")


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "./none", "/none", "a/b/c", "output/v0-1/checkpoint-5/"]
)
def test_what_is_no_id_is_asked_of_nobody(mirror: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="no hub was asked") as caught:
        find_model(name)
    assert "mirror" not in caught.value.what


def test_a_missing_file_is_compared_with_its_neighbours(home: Path) -> None:
    (home / "self_cognition.json").touch()
    with pytest.raises(NotFoundError, match="Did you mean self_cognition.json"):
        find_dataset("self_cogniton.json")


@given(st.text(max_size=20))
def test_an_id_never_leaves_its_folder(name: str) -> None:
    if ID.fullmatch(name):
        assert not any(part in {"", ".", ".."} for part in name.split("/"))


@pytest.mark.parametrize(
    "place",
    [
        "models/Qwen--Qwen2.5-7B/snapshots/master",
        "models/Qwen/Qwen2___5-7B",
        "hub/models/Qwen/Qwen2___5-7B",
        "hub/Qwen/Qwen2___5-7B",
        "Qwen/Qwen2.5-7B",
    ],
)
def test_every_layout_of_modelscopes_cache_is_known(home: Path, place: str) -> None:
    folder = model_in(home / "modelscope" / place)
    assert find_model("Qwen/Qwen2.5-7B") == folder


def test_data_sets_are_found_in_modelscopes_cache(home: Path) -> None:
    folder = home / "modelscope" / "hub" / "datasets" / "AI-ModelScope" / "alpaca"
    folder.mkdir(parents=True)
    (folder / "train.csv").touch()
    assert find_dataset("AI-ModelScope/alpaca") == folder


def test_part_of_a_model_in_a_cache_is_said(home: Path) -> None:
    folder = model_in(home / "modelscope" / "models" / "Nobody--Half" / "snapshots" / "master")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").touch()
    with pytest.raises(NotFoundError, match=r"ModelScope's cache .*: only a part of it"):
        find_model("Nobody/Half")
    (folder / "model-2.safetensors").touch()
    assert find_model("Nobody/Half") == folder


def test_finding_what_is_here_loads_no_client_library(home: Path, mirror: Path) -> None:
    code = (
        "import sys, swiftune.hub as hub\n"
        "hub.find_model('Qwen2.5-7B-Instruct'), hub.find_dataset('swift/self-cognition'), hub.find_model('.')\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'modelscope_hub', 'requests', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
