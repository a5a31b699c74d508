"""The rows that the arguments name: read, recognised, split and filtered, for training as for those who look first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune import hub
from swiftune.config import InspectArguments, SftArguments
from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger
from swiftune.recipes.opening import Opened
from swiftune.types import Sample

if TYPE_CHECKING:
    from swiftune.data.store import SampleStore
    from swiftune.data.tokens import TokenStore

ANY_LENGTH = 2**31 - 1
"""More tokens than any row has."""


@dataclass(frozen=True)
class Reader:
    """The arguments about data, in the words of ``data``."""

    args: SftArguments | InspectArguments
    opened: Opened
    ledger: Ledger

    def both(self) -> tuple[SampleStore, SampleStore]:
        """The rows to train on, filtered, and those for evaluation."""
        train, val = self.unfiltered()
        return self.filtered(train, val), val

    def filtered(self, train: SampleStore, val: SampleStore) -> SampleStore:
        """Those of the rows to train on that no filter leaves out."""
        from swiftune.data.filters import balanced, without_copies

        if self.args.filter_duplicates:
            train = without_copies(train, val, near=self.args.filter_duplicates == "near", ledger=self.ledger)
        if self.args.balance != "none":
            train = balanced(train, self.args.balance, ledger=self.ledger, seed=self.args.data_seed)
        return train

    def unfiltered(self) -> tuple[SampleStore, SampleStore]:
        """The rows to train on and those for evaluation."""
        from swiftune.data.load import split

        train = self.samples(self.args.dataset)
        if self.args.val_dataset:
            return train, self.samples(self.args.val_dataset)
        return split(train, self.args.split_dataset_ratio, self.args.data_seed)

    def samples(self, names: Sequence[str]) -> SampleStore:
        """The rows of named data sets."""
        from swiftune.data.load import load_samples

        return load_samples(
            names,
            self.find,
            ledger=self.ledger,
            columns=self.args.columns,
            seed=self.args.data_seed,
            shuffle=self.args.dataset_shuffle,
            identity=self.identity,
        )

    def rows(self, samples: Sequence[Sample], *, min_response: int = 0, any_length: bool = False) -> TokenStore:
        """The rows as tokens.

        Args:
            min_response: the fewest learned tokens that a row may have: ``--min_response_tokens`` is for training.
            any_length: whether rows longer than ``--max_length`` are kept as they are.
        """
        from swiftune.data.tokens import tokenize

        return tokenize(
            samples,
            self.opened.renderer,
            max_length=ANY_LENGTH if any_length else self.args.max_length,
            truncation_strategy=self.args.truncation_strategy,
            min_response=min_response,
            ledger=self.ledger,
            num_proc=self.args.dataset_num_proc,
        )

    def find(self, name: str) -> Path:
        """Where a data set is."""
        return hub.find_dataset(name, use_hf=self.args.use_hf)

    @property
    def identity(self) -> Identity:
        """Who fills the data set about identity."""
        return Identity.of(self.args.model_name, self.args.model_author)
