"""Rows that occur more than once: word for word, or nearly so.

Exactly: messages and tools are the same, by a hash of 128 bits. Nearly: what the two say, without system prompts, has
at least ``ALIKE`` of its runs of three words in common (Jaccard similarity; a Chinese or Japanese character is a word).
Pairs that may be alike come from MinHash (Broder 1997) with banding (Leskovec et al., Mining of Massive Datasets, 3.4),
and each of them is then compared by its text, so that what is reported is so. A pair that is exactly ``ALIKE`` is found
with a probability of about 0.95, one that has nine tenths in common with 0.9998.

Memory is some 60 bytes a row, and a few for each pair that may be alike; 192 bytes a row are in temporary files.

Legend: N rows, K places of a signature, B bands of it, P pairs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from swiftune.runtime.console import shown
from swiftune.types import Sample

ALIKE = 0.8
"""Share of runs of words in common from which on rows are nearly the same."""
WORDS = 3
"""Words of a run."""

_K, _B = 128, 16
_SEED = 42
_LIKELY = 0.65
"""Estimated similarity below which a pair is not compared: four standard deviations under ``ALIKE``."""
_BATCH = 64
"""Rows at the most whose signatures are computed at a time."""
_CHARACTERS = 2**20
"""Characters from which on no further row is added to those."""
_COMPARED = 64
"""Rows whose runs of words are kept for further comparisons."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|\w+")


@dataclass(frozen=True)
class Copies:
    """For each row, the earlier one that it is a copy of.

    Attributes:
        of_N: that row's index, or -1. Rows for evaluation are counted first.
        near_N: whether it is only nearly a copy.
        evaluation: how many rows for evaluation there are.
    """

    of_N: np.ndarray[Any, np.dtype[np.int64]]
    near_N: np.ndarray[Any, np.dtype[np.bool_]]
    evaluation: int


def find_copies(samples: Sequence[Sample], evaluation: Sequence[Sample] = (), *, near: bool) -> Copies:
    """Which rows are copies of rows for evaluation, or of earlier ones that are no copies themselves.

    Args:
        samples: in the order in which the first of several alike is kept.
        evaluation: these are kept in any case, and are not looked through for copies of each other.
        near: look for near copies too.
    """
    rows, held = _Joined(evaluation, samples), len(evaluation)
    with tempfile.TemporaryFile() as signatures, tempfile.TemporaryFile() as bands:
        digests_N2 = np.empty((len(rows), 2), np.uint64)
        start = 0
        for batch in shown("looking for copies", _batches(rows), len(rows), len):
            digests_N2[start : start + len(batch)] = [_digest(sample) for sample in batch]
            if near:
                signature_NK = _signatures(batch)
                signatures.write(signature_NK.astype(np.uint8).tobytes())
                bands.write(_band_keys(signature_NK).tobytes())
            start += len(batch)
        of_N = _equal(digests_N2)
        near_N = np.zeros(len(rows), bool)
        if near:
            _add_near(of_N, near_N, rows, held, signatures, bands)
    of_N[:held] = -1
    return Copies(of_N[held:], near_N[held:], held)


class _Joined(Sequence[Sample]):
    """Two sequences, one behind the other."""

    def __init__(self, first: Sequence[Sample], second: Sequence[Sample]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices: nobody needs them
        rest = index - len(self._first)
        return self._first[index] if rest < 0 else self._second[rest]


def _batches(rows: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    characters = 0
    for sample in rows:
        batch.append(sample)
        characters += sum(len(message.get("content") or "") for message in sample.messages)
        if len(batch) == _BATCH or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _digest(sample: Sample) -> tuple[int, int]:
    text = json.dumps([sample.messages, sample.tools], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _equal(digests_N2: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each row the first one of the same digest, or -1 where that is itself."""
    order_N = np.lexsort((digests_N2[:, 1], digests_N2[:, 0]))  # stable: among equals the first comes first
    sorted_N2 = digests_N2[order_N]
    starts_N = np.r_[True, (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)] if len(order_N) else np.empty(0, bool)
    of_N = np.empty(len(order_N), np.int64)
    of_N[order_N] = order_N[np.flatnonzero(starts_N)[np.cumsum(starts_N) - 1]]
    of_N[of_N == np.arange(len(of_N))] = -1
    return of_N


def shingles(sample: Sample) -> set[str]:
    """The runs of ``WORDS`` words of what is said, system prompts left out."""
    said = " ".join(m.get("content") or "" for m in sample.messages if m["role"] != "system")
    words = _WORD.findall(said.casefold()) or [said]  # nothing but signs
    return {" ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1))}


def _hashed(sample: Sample) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``shingles`` as sorted hashes: 8 bytes each."""
    return np.unique(np.fromiter(map(hash, shingles(sample)), np.int64))


def _jaccard(ours_S: np.ndarray[Any, np.dtype[np.int64]], theirs_S: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    common = np.intersect1d(ours_S, theirs_S, assume_unique=True).size
    return common / (ours_S.size + theirs_S.size - common)


def _signatures(batch: Sequence[Sample]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_token_sets([list(shingles(sample)) for sample in batch], _K, _SEED)
    return np.asarray(matrix.to_rows(), np.uint32)


def _band_keys(signature_NK: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """One number for each band: rows that agree in a whole band have the same one."""
    band_NBR = signature_NK.reshape(len(signature_NK), _B, _K // _B).astype(np.uint64)
    odd_R = np.random.default_rng(_SEED).integers(2**63, size=_K // _B, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    key_NB: np.ndarray[Any, np.dtype[np.uint64]] = (band_NBR * odd_R).sum(axis=2, dtype=np.uint64) >> np.uint64(32)
    return key_NB.astype(np.uint32)


def _add_near(
    of_N: np.ndarray[Any, np.dtype[np.int64]],
    near_N: np.ndarray[Any, np.dtype[np.bool_]],
    rows: Sequence[Sample],
    held: int,
    signatures: IO[bytes],
    bands: IO[bytes],
) -> None:
    """Enters near copies. Each is nearly the same as a row that is kept; the first ``held`` rows are."""
    exact = np.flatnonzero(of_N >= 0)
    compared = functools.lru_cache(maxsize=_COMPARED)(lambda index: _hashed(rows[index]))
    for later, earlier in _likely(of_N, held, signatures, bands).tolist():
        if of_N[later] >= 0 or (of_N[earlier] >= 0 and earlier >= held):
            continue
        if _jaccard(compared(later), compared(earlier)) >= ALIKE:
            of_N[later], near_N[later] = earlier, True
    moved = exact[near_N[of_N[exact]]]  # what a row is a copy of may be nearly a copy itself
    of_N[moved], near_N[moved] = of_N[of_N[moved]], True


def _likely(
    of_N: np.ndarray[Any, np.dtype[np.int64]], held: int, signatures: IO[bytes], bands: IO[bytes]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Pairs (later, earlier) of rows that may be near copies, in the order of the later one."""
    candidates_N = np.flatnonzero((of_N < 0) | (np.arange(len(of_N)) < held))
    codes_P = np.empty(0, np.int64)
    for band in range(_B):
        key_N = _column(bands, band, len(of_N))[candidates_N]
        order_N = np.argsort(key_N, kind="stable")
        same_N = np.r_[False, key_N[order_N][1:] == key_N[order_N][:-1]]
        first_N = np.maximum.accumulate(np.where(same_N, 0, np.arange(len(order_N))))
        at = np.flatnonzero(same_N & (candidates_N[order_N] >= held))
        for other in (first_N[at], at - 1):  # all pairs of a run would be too many
            codes_P = np.union1d(codes_P, candidates_N[order_N[at]] * len(of_N) + candidates_N[order_N[other]])
    pairs_P2 = np.stack(np.divmod(codes_P, max(1, len(of_N))), axis=1)
    # Of 8 bits of a place, one of 256 that differ agrees by chance.
    kept = [
        part[(_read(signatures, part[:, 0]) == _read(signatures, part[:, 1])).mean(axis=1) >= _LIKELY]
        for part in np.array_split(pairs_P2, len(pairs_P2) // 65536 + 1)
    ]
    return np.concatenate(kept)


def _column(bands: IO[bytes], band: int, rows: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The keys of one band, read a stretch of rows at a time."""
    bands.seek(0)
    column_N = np.empty(rows, np.uint32)
    for start in range(0, rows, 65536):
        count = min(65536, rows - start)
        column_N[start : start + count] = np.frombuffer(bands.read(4 * _B * count), np.uint32).reshape(-1, _B)[:, band]
    return column_N


def _read(signatures: IO[bytes], index_P: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The signatures of some rows."""
    found_PK = np.empty((len(index_P), _K), np.uint8)
    for place, index in enumerate(index_P.tolist()):
        signatures.seek(index * _K)
        signatures.readinto(found_PK[place].data)  # type: ignore[attr-defined]
    return found_PK
