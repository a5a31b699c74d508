"""Samples to rows of tokens: once per content, on disk, read where they are needed.

An entry of the cache is a folder: ``rows.arrow`` (the rows), ``lengths.i32`` (tokens of each), ``faults.jsonl``
(samples set aside: index, reason, detail) and ``about.json``. Its key is made of the samples, of everything that
decides how they are rendered, and of how they are cut, so it is never out of date. It is complete or not there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from swiftune.data.ledger import SHORT, Ledger, RowFault
from swiftune.errors import DataError, OutputError
from swiftune.runtime import paths, stop
from swiftune.runtime.console import shown
from swiftune.types import IGNORE, Row, Sample

if TYPE_CHECKING:
    import pyarrow as pa

    from swiftune.data.render import Renderer

TruncationStrategy = Literal["delete", "left", "right"]
"""What becomes of a sequence longer than ``max_length``: its row is set aside, or it loses its left or right end."""

Fault = tuple[int, str, str]
"""Index of the sample, reason, detail."""

TOO_LONG = "longer than max_length"
CUT_AWAY = "nothing to learn: max_length cuts every supervised token away"
NOTHING = "nothing to learn: no supervised token"

_BATCH = 512
"""Samples that are rendered and encoded at once; fewer where they are long."""
_CHARACTERS = 1 << 20
"""Of such a batch, about. Its rows take many times as much memory, and three batches are under way."""
_LOOKED_AT = 16
"""Samples by which their length is judged."""
_READ = 64
"""Rows of a record batch, which is read whole for any row of it: every one has as many, but the last."""


class TokenStore(Sequence[Row]):
    """Rows on disk.

    Attributes:
        cached: whether the rows were there already, so that nothing was tokenized.
        lengths: tokens of each row.
        supervised: supervised tokens of all rows.
        content: SHA-256 of all rows, which is the same wherever the data is.
    """

    def __init__(self, folder: Path, cached: bool = True) -> None:
        self.folder = folder
        self.cached = cached
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.supervised: int = about["supervised"]
        self.content: str = about["content"]
        self.lengths: np.ndarray[Any, np.dtype[np.int32]] = np.fromfile(folder / "lengths.i32", np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices: nobody needs them
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number, at = divmod(index, _READ)
        batch = self._reader.get_batch(number)
        ids_T, spans, lengths = (_cell(batch.column(name), at) for name in ("ids", "spans", "lengths"))
        labels_T = np.full_like(ids_T, IGNORE)
        for start, end in spans.reshape(-1, 2):
            labels_T[start:end] = ids_T[start:end]
        return Row(ids_T.copy(), labels_T, tuple(lengths.tolist()))

    def faults(self) -> Iterator[Fault]:
        """The samples that are no rows."""
        with (self.folder / "faults.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                index, reason, detail = json.loads(line)
                yield index, reason, detail

    @functools.cached_property
    def _reader(self) -> Any:
        import pyarrow as pa

        # Not mapped: the pages touched would count as this process's memory, up to the whole file.
        return pa.ipc.open_file(pa.OSFile(str(self.folder / "rows.arrow")))

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        return TokenStore, (self.folder,)


def tokenize(
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    max_length: int,
    truncation_strategy: TruncationStrategy = "delete",
    min_response: int = 0,
    ledger: Ledger,
    cache_dir: Path | None = None,
    num_proc: int = 1,
) -> TokenStore:
    """The rows of all samples, in order; taken from the cache if they were tokenized before.

    Args:
        samples: counted as used in the ledger; those that cannot be are withdrawn.
        renderer: makes rows of them.
        max_length: the most tokens that a sequence may have.
        truncation_strategy: what becomes of longer ones. ``left`` keeps the end: the system prompt goes first.
        min_response: the fewest supervised tokens that a row may have.
        ledger: is told of every sample that is no row, also where the rows come from the cache.
        cache_dir: where the rows are kept; ``runtime.paths.cache_dir()/tokens`` by default.
        num_proc: processes. One already uses all cores for the tokenizer; more help where templates take the time, and
            take two seconds to start.

    Raises:
        DataError: no row is left.
        OutputError: the cache cannot be written.
    """
    job = _Job(samples, renderer, max_length, truncation_strategy, min_response)
    target = (cache_dir or paths.cache_dir() / "tokens") / _key(job)
    with paths.locked(paths.lock_of(target), "tokenizing the same rows"):
        cached = target.is_dir()
        if not cached:
            try:
                with paths.staged(target) as folder:
                    _write(folder, job, num_proc)
            except OSError as error:
                raise OutputError(
                    f"The cache {target.parent} cannot be written: {error.strerror or error}.",
                    "Set SWIFTUNE_CACHE to a folder with room.",
                ) from None
    store = TokenStore(target, cached)
    for index, reason, detail in store.faults():
        ledger.withdraw(samples[index].place, reason, detail)
    if not len(store):
        raise nothing_left(((samples[index], reason, detail) for index, reason, detail in store.faults()), max_length)
    return store


def fit(row: Row | RowFault, max_length: int, strategy: TruncationStrategy, min_response: int = 0) -> Row | RowFault:
    """The row with no sequence longer than ``max_length``, and ``min_response`` supervised tokens; or why not."""
    if isinstance(row, RowFault):
        return row
    fitted = _cut(row, max_length, strategy)
    if isinstance(fitted, RowFault) or fitted.supervised >= min_response:
        return fitted
    return RowFault(SHORT, f"{fitted.supervised} tokens")


def _cut(row: Row, max_length: int, strategy: TruncationStrategy) -> Row | RowFault:
    if max(row.lengths) <= max_length:
        return row if row.supervised else RowFault(NOTHING)
    if strategy == "delete":
        return RowFault(TOO_LONG, f"{max(row.lengths)} tokens")
    pieces, start = [], 0
    for length in row.lengths:
        keep = min(length, max_length)
        first = start + (length - keep if strategy == "left" else 0)
        if (row.labels_T[first + 1 : first + keep] != IGNORE).any():
            pieces.append(slice(first, first + keep))
        start += length
    if not pieces:
        return RowFault(CUT_AWAY, f"{max(row.lengths)} tokens")
    ids_T, labels_T = (np.concatenate([array[piece] for piece in pieces]) for array in (row.ids_T, row.labels_T))
    return Row(ids_T, labels_T, tuple(piece.stop - piece.start for piece in pieces))


@dataclass(frozen=True)
class _Job:
    """What it takes to tokenize any stretch of the samples; what a process of its own is given."""

    samples: Sequence[Sample]
    renderer: Renderer
    max_length: int
    strategy: TruncationStrategy
    min_response: int

    def batches(self) -> list[range]:
        """Which samples are rendered and encoded at once."""
        count = len(self.samples)
        some = [self.samples[index] for index in range(0, count, max(1, count // _LOOKED_AT))]
        characters = sum(len(message.get("content") or "") for sample in some for message in sample.messages)
        size = max(1, min(_BATCH, _CHARACTERS * len(some) // max(1, characters)))
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def batch(self, indices: range) -> tuple[pa.RecordBatch, int, list[Fault]]:
        """The rows of these samples, their supervised tokens, and the samples that are none."""
        samples = [self.samples[index] for index in indices]
        rows: list[Row] = []
        faults: list[Fault] = []
        for index, row in zip(indices, self.renderer.rows(samples), strict=True):
            fitted = fit(row, self.max_length, self.strategy, self.min_response)
            if isinstance(fitted, RowFault):
                faults.append((index, fitted.reason, fitted.detail))
            else:
                rows.append(fitted)
        return _columns(rows), sum(row.supervised for row in rows), faults


def _write(folder: Path, job: _Job, num_proc: int) -> None:
    import pyarrow as pa

    supervised, content = 0, hashlib.sha256()
    pending = _columns([])
    with (
        (folder / "faults.jsonl").open("w", encoding="ascii") as lines,
        (folder / "lengths.i32").open("wb") as lengths,
        pa.OSFile(str(folder / "rows.arrow"), "wb") as out,
        pa.ipc.new_file(out, pending.schema) as writer,
    ):
        done = _batches(job, num_proc)
        for batch, learned, faults in shown("tokenizing", done, len(job.samples), lambda of: len(of[0]) + len(of[2])):
            supervised += learned
            lines.writelines(json.dumps(fault) + "\n" for fault in faults)
            lengths.write(np.diff(batch.column("ids").offsets).tobytes())
            for column in batch.columns:
                content.update(np.diff(column.offsets).tobytes())
                content.update(column.flatten().to_numpy().tobytes())
            pending = pa.concat_batches([pending, batch])
            while len(pending) >= _READ:
                writer.write_batch(pending.slice(0, _READ))
                pending = pending.slice(_READ)
        if len(pending):
            writer.write_batch(pending)
    (folder / "about.json").write_text(json.dumps({"supervised": supervised, "content": content.hexdigest()}))


def _batches(job: _Job, num_proc: int) -> Iterator[tuple[pa.RecordBatch, int, list[Fault]]]:
    """All batches in order, from this process or from several.

    In this process two threads take turns: Python renders one batch while the tokenizer encodes the other.
    """
    batches = job.batches()
    processes = min(num_proc, len(batches))
    pool: Executor
    if processes > 1:
        pool, run, waited = (
            ProcessPoolExecutor(processes, get_context("spawn"), _set_up, (job,)),
            _batch_here,
            processes,
        )
    else:
        pool, run, waited = ThreadPoolExecutor(2), job.batch, 1
    with pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for indices in batches:
                with stop.unheard():  # only this process, which ends the others, is to be interrupted
                    waiting.append(pool.submit(run, indices))
                if len(waiting) > 2 * waited:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


_here: _Job
"""The job of this process, where it is one of several."""


def _set_up(job: _Job) -> None:
    global _here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are what runs at the same time
    _here = job


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _batch_here(indices: range) -> tuple[pa.RecordBatch, int, list[Fault]]:
    return _here.batch(indices)


def _columns(rows: Sequence[Row]) -> pa.RecordBatch:
    """A record batch: the ids, where supervised tokens start and end, and the lengths of sequences."""
    import pyarrow as pa

    def lists(values: list[np.ndarray[Any, Any]]) -> pa.Array:
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, np.concatenate([*values, np.empty(0, np.int32)], dtype=np.int32))

    columns: dict[str, list[np.ndarray[Any, Any]]] = {
        "ids": [row.ids_T for row in rows],
        "spans": [_edges(row.labels_T != IGNORE) for row in rows],
        "lengths": [np.asarray(row.lengths) for row in rows],
    }
    return pa.RecordBatch.from_arrays([lists(values) for values in columns.values()], names=list(columns))


def _edges(mask_T: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where runs of True start and end: ``[start, end, start, end, ...]``."""
    padded = np.zeros(len(mask_T) + 2, dtype=bool)
    padded[1:-1] = mask_T
    return np.flatnonzero(padded[1:] != padded[:-1])


def _cell(column: Any, at: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """One list of a list column, without a copy."""
    start, end = column.offsets[at].as_py(), column.offsets[at + 1].as_py()
    return column.values.slice(start, end - start).to_numpy()  # type: ignore[no-any-return]


def _key(job: _Job) -> str:
    """The name of the cache entry: a hash of everything that the rows depend on."""
    fingerprint = getattr(job.samples, "fingerprint", None)
    if fingerprint is None:
        content = hashlib.sha256()
        for sample in job.samples:
            content.update(json.dumps([sample.messages, sample.tools], sort_keys=True).encode() + b"\n")
        fingerprint = content.hexdigest()
    code = Path(__file__).read_text(encoding="utf-8")
    parts = [fingerprint, job.renderer.fingerprint, job.max_length, job.strategy, job.min_response, code]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def nothing_left(faults: Iterable[tuple[Sample, str, str]], max_length: int) -> DataError:
    """What to raise where no row can be used, out of what was wrong with each."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    shortest = 0
    for sample, reason, detail in faults:
        counts[reason] += 1
        first.setdefault(reason, f"{sample.place}{f': {detail}' if detail else ''}")
        if reason == TOO_LONG:
            tokens = int(detail.split()[0])
            shortest = min(shortest or tokens, tokens)
    if set(counts) == {TOO_LONG}:
        return DataError(
            f"Every row is longer than --max_length {max_length}: the shortest has {shortest} tokens.",
            f"Set --max_length {shortest} or more, or cut the rows with --truncation_strategy left or right.",
        )
    lines = "".join(f"\n  {count:,} × {reason} ({first[reason]})" for reason, count in counts.most_common())
    cure = f"Raise --max_length, it is {max_length}." if CUT_AWAY in counts or TOO_LONG in counts else ""
    return DataError(f"No row can be used:{lines or ' there are none.'}", f"\n{cure}".rstrip())
