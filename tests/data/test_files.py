from __future__ import annotations

import json

import pytest

from swiftune.data.files import find_files
from swiftune.errors import DataError


def touch(folder, *names: str):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}\n')
    return folder


def found(folder, subset=None) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in find_files(folder, subset)]


def test_a_folder_is_read_in_order_and_in_depth(tmp_path) -> None:
    touch(tmp_path, "b.jsonl", "a.csv.gz", "deep/c.parquet", "d.json.zst", ".git/x.json", "notes.txt", "README.md")
    touch(tmp_path, "dataset_infos.json")
    assert found(tmp_path) == ["a.csv.gz", "b.jsonl", "d.json.zst", "deep/c.parquet"]


def test_a_subset_is_a_file_or_a_folder(tmp_path) -> None:
    touch(tmp_path, "law/a.jsonl", "law/b.jsonl", "code.jsonl")
    assert found(tmp_path, "law") == ["law/a.jsonl", "law/b.jsonl"]
    assert found(tmp_path, "code") == ["code.jsonl"]
    with pytest.raises(DataError, match=r"no subset 'art'.*law/a\.jsonl"):
        found(tmp_path, "art")


def test_files_named_for_other_splits_are_left_out_and_can_be_asked_for(tmp_path) -> None:
    touch(tmp_path, "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.parquet", "val/a.jsonl")
    assert found(tmp_path) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert found(tmp_path, "test") == ["test.parquet"]
    assert found(tmp_path, "val") == ["val/a.jsonl"]


def test_only_a_test_split(tmp_path) -> None:
    assert found(touch(tmp_path, "test.jsonl")) == ["test.jsonl"]


README = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: test
    path: main/test-*
  - split: train
    path: main/train-*
- config_name: other
  data_files: "other/**"
- config_name: plain
  data_dir: flat
  data_files: ["x.csv", "y.csv"]
- config_name: gone
  data_files: gone/*.json
---
# A set
"""


def test_readme_configs(tmp_path) -> None:
    touch(tmp_path, "main/train-0.parquet", "main/test-0.parquet", "other/deep/a.jsonl", "flat/x.csv", "flat/y.csv")
    (tmp_path / "README.md").write_text(README)
    assert found(tmp_path) == ["main/train-0.parquet"]
    assert found(tmp_path, "other") == ["other/deep/a.jsonl"]
    assert found(tmp_path, "plain") == ["flat/x.csv", "flat/y.csv"]
    with pytest.raises(DataError, match="main, other, plain"):
        found(tmp_path, "nope")
    with pytest.raises(DataError, match=r"gone/\*\.json"):
        found(tmp_path, "gone")


def test_several_configs_without_a_default_have_to_be_chosen(tmp_path) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "README.md").write_text(README.replace("  default: true\n", ""))
    with pytest.raises(DataError, match=r"several subsets.*main, other"):
        found(tmp_path)


@pytest.mark.parametrize("head", ["---\nconfigs: [\n---\n", "---\nconfigs: 5\n---\n", "no head", "---\n- a\n---\n"])
def test_a_readme_that_says_nothing(tmp_path, head: str) -> None:
    touch(tmp_path, "a.jsonl")
    (tmp_path / "README.md").write_text(head)
    assert found(tmp_path) == ["a.jsonl"]


def test_older_modelscope_layout(tmp_path) -> None:
    folder = touch(tmp_path / "alpaca-gpt4-data-zh", "train.csv", "test.csv")
    meta = {"default": {"train": {"meta": "train.csv", "file": ""}, "test": {"meta": "test.csv"}}}
    (folder / "alpaca-gpt4-data-zh.json").write_text(json.dumps(meta))
    assert found(folder) == ["train.csv"]


def test_a_folder_without_data_is_told_with_what_it_holds(tmp_path) -> None:
    touch(tmp_path, "model.safetensors", "config.txt")
    with pytest.raises(DataError) as caught:
        find_files(tmp_path)
    assert "config.txt, model.safetensors" in caught.value.what
    assert "jsonl" in caught.value.cure
    with pytest.raises(DataError, match="nothing"):
        find_files(touch(tmp_path / "empty"))
