"""Which files of a repository are wanted, and whether a folder has them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from swiftune.errors import NotFoundError

Kind = Literal["model", "dataset"]

COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "*.md", "LICENSE*", "NOTICE*")
"""What stands beside weights: configuration, tokenizer, licence; code, which runs only with --trust_remote_code."""
TABLES = ("*.json", "*.jsonl", "*.csv", "*.parquet")
PACKED = ("", ".gz", ".zst")
DATA = tuple(pattern + packed for pattern in TABLES for packed in PACKED)


def wanted(kind: Kind, names: Sequence[str], repo: str) -> list[str]:
    """Of the files of a repository, those to download.

    For a model the files at its top: companions and safetensors, or one GGUF file; never a pickle. For a data set every
    data file, wherever it stands.

    Args:
        names: paths inside the repository.
        repo: the repository in words, for messages.

    Raises:
        NotFoundError: there is nothing in it that could be used.
    """
    if kind == "dataset":
        data = [name for name in names if _matches(PurePosixPath(name).name, DATA)]
        if not data:
            raise NotFoundError(f"{repo} holds no data files ({', '.join(TABLES)}, also as .gz or .zst).")
        return data
    top = [name for name in names if "/" not in name]
    return [name for name in top if _matches(name, COMPANIONS)] + _weights(top, repo)


def _weights(names: Sequence[str], repo: str) -> list[str]:
    safetensors = [name for name in names if name.endswith(".safetensors")]
    if any(name.startswith("model") for name in safetensors):  # beside them some repositories keep other packagings
        safetensors = [name for name in safetensors if not name.startswith("consolidated")]
    if safetensors:
        return safetensors
    gguf = [name for name in names if name.endswith(".gguf")]
    if len(gguf) == 1:
        return gguf
    if gguf:
        raise NotFoundError(
            f"{repo} holds {len(gguf)} GGUF files and no safetensors, so which one is meant is not clear.",
            "Download one of them into a folder of its own and name the folder.",
        )
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    found = f" It has {pickles[0]}, a pickle, which is not read." if pickles else ""
    raise NotFoundError(f"{repo} holds no weights (*.safetensors or *.gguf).{found}")


def is_whole(kind: Kind, folder: Path) -> bool:
    """Whether a folder in a hub's cache can be used: other programs leave partly downloaded ones there."""
    if kind == "dataset":
        return any(_matches(file.name, DATA) for file in folder.rglob("*") if file.is_file())
    if any(folder.glob("*.gguf")):
        return True
    if not (folder / "config.json").exists():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / shard).exists() for shard in shards)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
