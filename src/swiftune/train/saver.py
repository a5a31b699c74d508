"""Checkpoints and pictures written beside training, by the main process. A full disk does not end a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.errors import OutputError
from swiftune.runtime.console import warn
from swiftune.train import checkpoint, checkpoint_folder, plots
from swiftune.train.background import Background
from swiftune.train.checkpoint import Snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Saver(Background):
    """One thread that writes into a run's folder.

    Args:
        limit: ``--save_total_limit``.

    Attributes:
        unsaved: why the last checkpoint that was due could not be written; ``None`` if it was.
    """

    def __init__(self, run: Path, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> None:
        super().__init__()
        self.run, self.tokenizer, self.limit = run, tokenizer, limit
        self.unsaved: OutputError | None = None
        self._told: OutputError | None = None

    def save(self, taken: Snapshot, best: int | None) -> None:
        """Writes a checkpoint, and draws the log; waits for that only where ``taken`` is no copy.

        Args:
            best: step of the best checkpoint.
        """
        self.start(partial(self._save, taken, best))
        self.afterwards(self._draw)
        if not taken.copied:
            self.wait()

    def _save(self, taken: Snapshot, best: int | None) -> None:
        try:
            checkpoint.write(self.run, taken, self.tokenizer)
            self.unsaved = None
            self.settle(taken.state["step"], best)
        except OutputError as error:
            self.unsaved = error
            warn(f"{error.what} Training goes on, and tries again at the next save. {error.cure}")
        except OSError as error:  # that checkpoint is whole
            warn(f"The checkpoints in {self.run} could not be put in order: {error.strerror or error}.")

    def settle(self, step: int, best: int | None) -> None:
        """What follows the writing of a checkpoint: the link to the best one, and no more of them than allowed."""
        if best is not None:
            checkpoint_folder.point_best(self.run, best)
        checkpoint_folder.rotate(self.run, self.limit, keep=(best, step))

    def draw(self) -> None:
        """Draws the log."""
        self.afterwards(self._draw)

    def _draw(self) -> None:
        try:
            plots.draw(self.run)
        except OSError as error:
            warn(f"The pictures in {self.run / 'images'} could not be drawn: {error.strerror or error}.")

    def news(self) -> str:
        """What went wrong since the last call, for the log; empty where nothing did."""
        told, self._told = self._told, self.unsaved
        return str(self.unsaved) if self.unsaved is not None and self.unsaved is not told else ""
