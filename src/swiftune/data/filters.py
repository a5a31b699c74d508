"""Rows that could be used and are not, because the user asked for it; the ledger is told of each."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from swiftune.data import duplicates
from swiftune.data.duplicates import Copies, find_copies
from swiftune.data.ledger import BALANCED, COPY, NEAR_COPY, Ledger
from swiftune.data.load import choose
from swiftune.data.store import SampleStore
from swiftune.errors import DataError, OutputError
from swiftune.runtime import paths
from swiftune.runtime.console import notice


def without_copies(train: SampleStore, evaluation: SampleStore, *, near: bool, ledger: Ledger) -> SampleStore:
    """The training rows that are no copies of an earlier one, or of a row for evaluation.

    Rows that ``#N`` repeats are no copies of themselves: that was asked for, too.

    Raises:
        DataError: every row is a copy of one for evaluation.
        OutputError: the cache cannot be written.
    """
    unique, held = once(train), once(evaluation)
    copies = copies_of(unique, held, near=near)
    mask_N = np.isin(train.rows_N, unique.rows_N[copies.of_N >= 0])
    for index in np.flatnonzero(mask_N).tolist():
        row = int(np.searchsorted(unique.rows_N, train.rows_N[index]))
        reason = NEAR_COPY if copies.near_N[row] else COPY
        ledger.withdraw(train[index].place, reason, original(copies, row, unique, held))
    if mask_N.all() and len(mask_N):
        raise DataError(
            "--filter_duplicates leaves no row to train on: each is a copy of a row for evaluation.",
            "Name other rows with --val_dataset.",
        )
    return SampleStore(train.parts, train.rows_N[~mask_N])


def once(store: SampleStore) -> SampleStore:
    """Each of the rows once, in the order of the files."""
    return SampleStore(store.parts, np.unique(store.rows_N))


def original(copies: Copies, index: int, rows: SampleStore, evaluation: SampleStore) -> str:
    """Says what a row is a copy of."""
    of = int(copies.of_N[index])
    if of < copies.evaluation:
        return f"of {evaluation[of].place}, which is for evaluation"
    return f"of {rows[of - copies.evaluation].place}"


def copies_of(train: SampleStore, evaluation: SampleStore, *, near: bool) -> Copies:
    """``find_copies``, from the cache if they were looked for before."""
    code = Path(duplicates.__file__).read_text(encoding="utf-8")
    content = json.dumps([train.fingerprint, evaluation.fingerprint, near, code])
    target = paths.cache_dir() / "copies" / hashlib.sha256(content.encode()).hexdigest()[:32]
    with paths.locked(paths.lock_of(target), "looking for copies among the same rows"):
        if not target.is_dir():
            try:
                with paths.staged(target) as folder:
                    found = find_copies(train, evaluation, near=near)
                    np.save(folder / "of.npy", found.of_N)
                    np.save(folder / "near.npy", found.near_N)
            except OSError as error:
                raise OutputError(
                    f"The cache {target.parent} cannot be written: {error.strerror or error}.",
                    "Set SWIFTUNE_CACHE to a folder with room, and TMPDIR to another.",
                ) from None
    return Copies(np.load(target / "of.npy"), np.load(target / "near.npy"), len(evaluation))


def balanced(store: SampleStore, by: Literal["channel", "label"], *, ledger: Ledger, seed: int) -> SampleStore:
    """As many rows as there are, in equal parts of each class: whole repeats of a class, then a sample of it.

    Raises:
        DataError: no row has that column.
    """
    names = [getattr(sample, by) for sample in store]
    if not any(names):
        raise DataError(
            f"--balance {by}: no row has a column {by!r}.", f'Name the column with --columns \'{{"source": "{by}"}}\'.'
        )
    classes = {name: number for number, name in enumerate(sorted(set(names), key=str))}
    class_N = np.array([classes[name] for name in names])
    each, more = divmod(len(store), len(classes))
    chosen: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for name, number in classes.items():
        there = np.flatnonzero(class_N == number)
        chosen.append(there[choose(len(there), each + (number < more), (seed, zlib.crc32(str(name).encode())))])
        notice(f"--balance {by}: {name or f'no {by}'}: {len(there):,} rows, {len(chosen[-1]):,} are drawn.")
    drawn_N = np.sort(np.concatenate(chosen))
    drawn_once = np.unique(drawn_N)
    for index in np.setdiff1d(np.arange(len(store)), drawn_once).tolist():
        ledger.withdraw(store[index].place, BALANCED, f"{by} {names[index]}")
    ledger.repeat(len(drawn_N) - len(drawn_once))
    return SampleStore(store.parts, store.rows_N[drawn_N])
