"""Which files make up a data set: one file, or those of a folder that belong to a subset.

A folder from a hub says so itself, in the ``configs`` of its README.md (Hugging Face and ModelScope) or in
``dataset_infos.json`` / ``<folder>.json`` (older ModelScope); any other folder by its file and folder names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from swiftune.errors import DataError
from swiftune.runtime.console import notice

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
PACKED = (".gz", ".zst")
ENDINGS = "json, jsonl, csv, parquet, and .gz or .zst of these"

_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}
_HELD_OUT = {"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}


def format_of(path: Path) -> str | None:
    """The ending that says how to read the file (``.jsonl`` for ``x.jsonl.gz``), or None where it is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def find_files(path: Path, subset: str | None = None) -> list[Path]:
    """The files to read, in a fixed order: the training split where there are splits.

    Raises:
        DataError: nothing there is a data file, the subset is unknown, or one of several has to be chosen.
    """
    if path.is_file():
        if format_of(path) is None:
            raise DataError(f"{path} has no ending that is read as data.", f"Endings read: {ENDINGS}.")
        if subset is not None:
            raise DataError(f"{path} is a single file and has no subset {subset!r}.", "Leave out the part after ':'.")
        return [path]
    everything = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
    configs = _readme_configs(path) or _modelscope_configs(path)
    described = {file for config in configs.values() for file in config["described_by"]}
    data = [file for file in everything if format_of(file) and file.name not in _NOT_ROWS and file not in described]
    if not data:
        found = ", ".join(str(file.relative_to(path)) for file in everything[:8]) or "nothing"
        found += ", …" if len(everything) > 8 else ""
        raise DataError(f"The folder {path} has no data file; it holds {found}.", f"Endings read: {ENDINGS}.")
    if configs:
        return _of_config(path, configs, subset, data)
    return _by_name(path, subset, data)


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)


# Folders that describe themselves. A config is {"default": bool, "splits": {name: [patterns]}, "described_by": [file]}.


def _readme_configs(folder: Path) -> dict[str, dict[str, Any]]:
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", readme.read_text(encoding="utf-8", errors="replace"), re.S)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        notice(f"{readme}: its YAML head cannot be read ({error}); files are chosen by their names.")
        return {}
    listed = head.get("configs") if isinstance(head, dict) else None
    configs: dict[str, dict[str, Any]] = {}
    for config in listed if isinstance(listed, list) else []:
        if isinstance(config, dict) and "data_files" in config:
            configs[str(config.get("config_name", "default"))] = {
                "default": config.get("default") is True,
                "splits": dict(_splits(config["data_files"], str(config.get("data_dir", "")))),
                "described_by": [],
            }
    return configs


def _splits(data_files: Any, data_dir: str) -> Iterator[tuple[str, list[str]]]:
    """``data_files`` of a README: a pattern, a list of patterns, a dict by split, or a list of {split, path}."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": paths} for split, paths in data_files.items()]
    entries = data_files if isinstance(data_files, list) else [data_files]
    if not all(isinstance(entry, dict) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    for entry in entries:
        paths = entry.get("path", [])
        patterns = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
        yield str(entry.get("split", "train")), [f"{data_dir}/{p}" if data_dir else p for p in patterns]


def _modelscope_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Older ModelScope sets: a JSON file ``{subset: {split: {"meta": "train.csv", ...}}}`` beside the data."""
    configs: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        if file.stat().st_size > 1 << 16:
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue  # not such a file; if it is data, its reader says what is wrong with it
        if not isinstance(value, dict):
            continue
        for subset, splits in value.items():
            entries = splits.items() if isinstance(splits, dict) else []
            metas = {s: [e["meta"]] for s, e in entries if isinstance(e, dict) and isinstance(e.get("meta"), str)}
            if metas and len(metas) == len(entries):
                configs[subset] = {"default": False, "splits": metas, "described_by": [file]}
    return configs


def _of_config(folder: Path, configs: dict[str, dict[str, Any]], subset: str | None, data: list[Path]) -> list[Path]:
    marked = [name for name, config in configs.items() if config["default"]]
    marked += [name for name in configs if name == "default" or len(configs) == 1]
    chosen = subset or (marked[0] if marked else "")
    if chosen not in configs:
        problem = f"has no subset {subset!r}" if subset else "has several subsets"
        raise DataError(f"{folder} {problem}.", f"Subsets: {', '.join(configs)}; choose one with name:subset.")
    splits: dict[str, list[str]] = configs[chosen]["splits"]
    held_in = [name for name in splits if not _held_out(name)] or list(splits)
    split = "train" if "train" in splits else held_in[0]
    files = [file for file in data if _matches(file.relative_to(folder).as_posix(), splits[split])]
    if not files:
        raise DataError(
            f"{folder}: the subset {chosen!r} names {', '.join(splits[split])}, and no file there matches.",
            f"Files found: {_names(folder, data)}.",
        )
    if len(splits) > 1:
        notice(f"{folder}: the split {split!r} is read; others there: {', '.join(s for s in splits if s != split)}.")
    return files


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """As the hubs match: ``*`` within a folder, ``**/`` over folders; a folder means all in it."""
    for pattern in patterns:
        pattern = pattern.removeprefix("./")
        flat = pattern.replace("**/", "")
        if name == pattern or name.startswith(pattern.rstrip("/") + "/"):
            return True
        if fnmatch(name, pattern) and ("**" in pattern or name.count("/") == pattern.count("/")):
            return True
        if flat != pattern and fnmatch(name, flat):
            return True
    return False


# Folders that do not.


def _by_name(folder: Path, subset: str | None, data: list[Path]) -> list[Path]:
    if subset is not None:
        chosen = [file for file in data if subset in _labels(file.relative_to(folder))]
        if not chosen:
            raise DataError(
                f"{folder} has no subset {subset!r}: no file or folder there is called so.",
                f"Files found: {_names(folder, data)}.",
            )
        data = chosen
    kept = [file for file in data if not _held_out(file.relative_to(folder).as_posix())]
    if kept and len(kept) < len(data) and (subset is None or not _held_out(subset)):
        left = _names(folder, [file for file in data if file not in kept])
        notice(f"{folder}: files named for a test or validation split are not read: {left}.")
        return kept
    return data


def _labels(file: Path) -> set[str]:
    stem = file.name.split(".")[0]
    return {*file.parts, stem, file.name.removesuffix(file.suffix)}


def _held_out(name: str) -> bool:
    return not _HELD_OUT.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


def _names(folder: Path, files: list[Path]) -> str:
    return ", ".join(file.relative_to(folder).as_posix() for file in files[:8]) + (", …" if len(files) > 8 else "")
