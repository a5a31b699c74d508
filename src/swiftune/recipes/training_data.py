"""The rows of a training run: found, read, recognised, chosen, split, tokenized, and every one accounted for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.config import SftArguments
from swiftune.data.ledger import Ledger
from swiftune.recipes.opening import Opened
from swiftune.recipes.reading import Reader
from swiftune.runtime.console import err, say
from swiftune.train.feed import EpochFeed, Feed, RowStore, StreamFeed
from swiftune.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swiftune.data.store import SampleStore


@dataclass(frozen=True)
class TrainingData:
    """What the loop is fed with."""

    feed: Feed
    first: Row
    """The first row, for people to look at."""
    longest: int
    """Most tokens in a row."""
    rows_per_step: int
    ledger: Ledger
    val: RowStore | None = None
    val_samples: SampleStore | None = None
    """The rows of ``val`` before they were tokenized."""
    tokens: dict[str, int] = field(default_factory=dict)
    """``train`` and ``supervised`` tokens of one pass over the training rows; empty for a stream."""
    key: str = ""
    """Names the training rows by their content and order; empty for a stream."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file read; of a stream, of the validation files only."""

    def show(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Shows the first row as it is learned."""
        from swiftune.data.render import preview

        err().print(preview(self.first, tokenizer))

    def account(self, run: Path) -> None:
        """Says what became of every row read so far, and lists those set aside."""
        say(self.ledger.summary())
        self.ledger.write(run / "set_aside.jsonl")


def prepare(args: SftArguments, opened: Opened, processes: int) -> TrainingData:
    """Everything from the names of data sets to rows in steps.

    Args:
        processes: how many share the rows of a step.

    Raises:
        UsageError, DataError: the data cannot be used, see ``data``.
    """
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    ledger = Ledger(
        strict=args.strict,
        max_bad_rows=args.max_bad_rows,
        ahead=args.shuffle_buffer_size if args.streaming else None,
    )
    return (_stream if args.streaming else _store)(args, Reader(args, opened, ledger), rows_per_step)


def _store(args: SftArguments, reader: Reader, rows_per_step: int) -> TrainingData:
    train, val = reader.both()
    rows = reader.rows(train, min_response=args.min_response_tokens)
    val_rows = reader.rows(val) if len(val) else None
    reader.ledger.check()
    feed = EpochFeed(
        rows,
        rows_per_step,
        epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        shuffle=args.train_dataloader_shuffle,
        seed=args.data_seed,
    )
    return TrainingData(
        feed,
        first=rows[0],
        longest=int(rows.lengths.max()),
        rows_per_step=rows_per_step,
        ledger=reader.ledger,
        val=val_rows,
        val_samples=val if len(val) else None,
        tokens={"train": int(rows.lengths.sum()), "supervised": rows.supervised},
        key=rows.content,
        hashes=train.hashes | val.hashes,
    )


def _stream(args: SftArguments, reader: Reader, rows_per_step: int) -> TrainingData:
    from swiftune.data.stream import stream_samples
    from swiftune.data.token_stream import TokenStream

    val = reader.samples(args.val_dataset)
    val_rows = reader.rows(val) if len(val) else None
    samples = stream_samples(
        args.dataset,
        reader.find,
        ledger=reader.ledger,
        columns=args.columns,
        seed=args.data_seed,
        identity=reader.identity,
        buffer_size=args.shuffle_buffer_size if args.train_dataloader_shuffle else 1,
        interleave_prob=args.interleave_prob,
        stopping_strategy=args.stopping_strategy,
    )
    rows = TokenStream(
        samples,
        reader.opened.renderer,
        max_length=args.max_length,
        truncation_strategy=args.truncation_strategy,
        min_response=args.min_response_tokens,
    )
    return TrainingData(
        StreamFeed(rows, rows_per_step, max_steps=args.max_steps),
        first=rows.peek(),
        longest=args.max_length,
        rows_per_step=rows_per_step,
        ledger=reader.ledger,
        val=val_rows,
        val_samples=val if len(val) else None,
        hashes=val.hashes,
    )
