"""The rows of a published benchmark: where it is, and which of its files hold a split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiftune import hub
from swiftune.data.files import ENDINGS, format_of
from swiftune.data.sources import read_rows
from swiftune.errors import DataError, NotFoundError
from swiftune.types import SetAside

_SPLITS = {"test", "val", "validation", "dev", "train", "data"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where to look for a benchmark.

    Attributes:
        names: what its folder is called in a mirror, without the organisation.
        modelscope, hugging_face: its ids there.
    """

    names: tuple[str, ...]
    modelscope: str
    hugging_face: str

    def find(self, where: str, *, use_hf: bool) -> Path:
        """The file or folder. ``where``: a path or id of the user's; empty: the usual places.

        Raises:
            NotFoundError: it is nowhere.
        """
        if where:
            return hub.find_dataset(where, use_hf=use_hf)
        *first, last = [*self.names, self.hugging_face if use_hf else self.modelscope]
        for name in first:
            try:
                return hub.find_dataset(name)
            except NotFoundError:
                continue
        try:
            return hub.find_dataset(last, use_hf=use_hf)
        except NotFoundError as error:
            cure = f"Or name its file or folder: --eval_dataset {self.names[0]}=FOLDER."
            raise NotFoundError(error.what, f"{error.cure} {cure}") from error


def rows_of(place: Path, splits: Sequence[str], subset: str | None = None) -> list[dict[str, Any]]:
    """The rows of the first of ``splits`` that has files; of a single file, all.

    A file belongs to a split (and a subset) if a part of its path is called so: ``main/test-00000-of-00001.parquet``,
    ``test/anatomy_test.csv``, ``test.jsonl``. A folder called as the subset goes first; where none is named, a folder
    ``all``: the others have the same rows once more. A row remembers its subset as ``_subset``.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    files = [place] if place.is_file() else _of_split(place, splits, subset)
    rows = []
    for file in files:
        subset_of_file = list(_labels(file, place if file != place else file.parent))[-1]
        for row in read_rows(file):
            if isinstance(row, SetAside) or not isinstance(row.value, dict):
                reason = row.reason if isinstance(row, SetAside) else "it is no object with columns"
                raise DataError(f"{row.place}: {reason}.", "A benchmark is read whole or not at all.")
            rows.append({"_subset": subset_of_file, "_place": str(row.place), **row.value})
    return rows


def examples_of(place: Path, split: str, subset: str | None, shots: int | None) -> list[dict[str, Any]]:
    """The rows to take worked examples from; none where there are to be none, or there is a single file.

    Raises:
        DataError: ``shots`` of them are asked for, and there is a single file.
    """
    if shots and place.is_file():
        raise DataError(
            f"--num_fewshot {shots}: {place} is one file, and worked examples are taken from the split {split}.",
            "Name the folder that has both, or set --num_fewshot 0.",
        )
    return [] if shots == 0 or place.is_file() else rows_of(place, [split], subset)


def column(row: dict[str, Any], *names: str) -> Any:
    """The value of the first of these columns that the row has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    there = ", ".join(name for name in row if not name.startswith("_"))
    raise DataError(f"{row['_place']} has no {' or '.join(names)}; its columns are {there}.", "Is it this benchmark?")


def _of_split(folder: Path, splits: Sequence[str], subset: str | None) -> list[Path]:
    data = sorted(file for file in folder.rglob("*") if format_of(file) and file.is_file())
    for split in splits:
        of_split = [file for file in data if split in _words(file, folder)]
        for names in (_folders, _labels):
            if chosen := [file for file in of_split if (subset or "all") in names(file, folder)]:
                return chosen
    wanted = f"{' or '.join(splits)}{f' of {subset!r}' if subset else ''}"
    there = ", ".join(str(file.relative_to(folder)) for file in data[:8]) or f"none with an ending read ({ENDINGS})"
    raise DataError(f"{folder} has no file of the split {wanted}.", f"Files there: {there}.")


def _words(file: Path, folder: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", str(file.relative_to(folder)).lower()))


def _folders(file: Path, folder: Path) -> list[str]:
    return [part for part in file.relative_to(folder).parent.parts if part not in _SPLITS]


def _labels(file: Path, folder: Path) -> Iterator[str]:
    """What may be a subset's name: each folder but a split's, and the file's name without its split."""
    yield "all"
    yield from _folders(file, folder)
    name = re.sub(r"(^|[-_])(test|val|validation|dev|train)([-_.].*)?$", "", file.name.split(".")[0])
    if name:
        yield name
