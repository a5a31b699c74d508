from __future__ import annotations

import pytest

from swiftune.errors import NotFoundError
from swiftune.hub.files import wanted


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json", "a.safetensors", "a.bin"], ["config.json", "a.safetensors"]),
        (["config.json", "model-Q4.gguf", "merges.txt"], ["config.json", "merges.txt", "model-Q4.gguf"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors"], ["consolidated.safetensors"]),
        (["model.safetensors", "original/model.safetensors", "onnx/config.json"], ["model.safetensors"]),
        (["model.safetensors", "model.gguf"], ["model.safetensors"]),
        (["model.safetensors", "model.py", "LICENSE", ".gitattributes"], ["model.py", "LICENSE", "model.safetensors"]),
    ],
)
def test_of_a_model_the_safe_weights_and_what_belongs_to_them(names: list[str], expected: list[str]) -> None:
    assert wanted("model", names, "it") == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json"], "holds no weights"),
        (["pytorch_model.bin"], "pytorch_model.bin, a pickle, which is not read"),
        (["a-Q4.gguf", "a-Q8.gguf"], "2 GGUF files"),
    ],
)
def test_a_model_without_them_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(NotFoundError, match=said):
        wanted("model", names, "it")


def test_of_a_data_set_the_tables() -> None:
    tables = ["train.json", "a/b.jsonl.gz", "c.csv.zst", "data/d.parquet"]
    assert wanted("dataset", [*tables, "README.md", "load.py", "e.png"], "it") == tables
    with pytest.raises(NotFoundError, match="no data files"):
        wanted("dataset", ["README.md"], "it")
