"""The rows of a training run: found, read, recognised, chosen, split, tokenized, and every one accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune import hub
from swiftune.config import SftArguments
from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger
from swiftune.errors import UsageError
from swiftune.recipes.opening import Opened
from swiftune.runtime.console import err
from swiftune.train.feed import EpochFeed, Feed, RowStore, StreamFeed
from swiftune.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swiftune.data.store import SampleStore
    from swiftune.data.tokens import TokenStore


@dataclass(frozen=True)
class TrainingData:
    """What the loop is fed with."""

    feed: Feed
    first: Row
    """The first row, for people to look at."""
    longest: int
    """Most tokens in a row."""
    rows_per_step: int
    val: RowStore | None
    val_samples: SampleStore | None
    """The rows of ``val`` before they were tokenized."""
    tokens: dict[str, int]
    """``train`` and ``supervised`` tokens in one pass over the training rows; empty for a stream."""
    hashes: dict[str, str]
    """SHA-256 of every file read."""
    ledger: Ledger

    def show(self, tokenizer: PreTrainedTokenizerBase, run: Path) -> None:
        """Says what became of every row, lists those set aside, and shows the first one as it is learned."""
        from swiftune.data.render import preview

        err().print(preview(self.first, tokenizer))
        err().print(self.ledger.summary(), markup=False)
        self.ledger.write(run / "set_aside.jsonl")


def prepare(args: SftArguments, opened: Opened, processes: int) -> TrainingData:
    """Everything from the names of data sets to rows in steps.

    Args:
        processes: how many share the rows of a step.

    Raises:
        UsageError, DataError: the data cannot be used, see ``data``.
    """
    from swiftune.data.load import load_samples, split

    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    ledger = Ledger()

    def load(names: list[str]) -> SampleStore:
        return load_samples(
            names,
            lambda name: hub.find_dataset(name, use_hf=args.use_hf),
            columns=args.columns,
            seed=args.data_seed,
            ledger=ledger,
            identity=Identity.of(args.model_name, args.model_author),
        )

    if args.streaming:
        raise UsageError("streaming comes next")
    samples = load(args.dataset)
    if args.val_dataset:
        train, val = samples, load(args.val_dataset)
    else:
        train, val = split(samples, args.split_dataset_ratio, args.data_seed)
    rows = _tokenize(train, args, opened, ledger)
    val_rows = _tokenize(val, args, opened, ledger) if len(val) else None
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
        rows[0],
        int(rows.lengths.max()),
        rows_per_step,
        val_rows,
        val if len(val) else None,
        {"train": int(rows.lengths.sum()), "supervised": rows.supervised},
        samples.hashes | val.hashes,
        ledger,
    )


def _tokenize(samples: SampleStore, args: SftArguments, opened: Opened, ledger: Ledger) -> TokenStore:
    from swiftune.data.tokens import tokenize

    return tokenize(
        samples,
        opened.renderer,
        max_length=args.max_length,
        truncation_strategy=args.truncation_strategy,
        ledger=ledger,
        num_proc=args.dataset_num_proc,
    )
