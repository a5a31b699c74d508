"""The values that pass from room to room.

    sources -> RawRow -> formats -> Sample -> render -> Row -> plan -> MicroBatch -> step

Shape legend: T tokens of a row, or of a packed micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORE = -100
"""Label of a token that is not supervised (PyTorch's ``ignore_index``)."""


class Message(TypedDict, total=False):
    """One message of a chat, as chat templates take it, plus ``loss``."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool``."""
    content: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    """The call that a ``tool`` message answers, for templates that write it."""
    reasoning_content: str
    name: str
    loss: bool
    """Assistant messages only: ``False`` keeps the message out of the loss. Not passed to the template."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row was read: the file and the line it starts on (counted from 1; parquet: the row)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file has it, before its format is recognised."""

    place: Place
    value: Any


@dataclass(frozen=True, slots=True)
class Sample:
    """A row in the one form that everything after ``formats`` sees."""

    messages: list[Message]
    place: Place
    tools: list[dict[str, Any]] | None = None
    format: str = field(default="", compare=False)
    """The layout that the row was recognised by."""
    channel: str | None = None
    """The row's own ``channel``, such as where it is from; None where it has none."""
    label: str | None = None
    """The row's own ``label``, as text; None where it has none."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that is not used, and why. One line of ``set_aside.jsonl``."""

    place: Place
    reason: str
    """The kind of fault, the same words for every row that has it; counted by this."""
    detail: str = ""
    """What is special about this row (the column, the length, the offending value shortened)."""


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenized row: one row of an optimizer step, whatever it is packed with.

    A conversation whose template rewrites its history (Qwen3 drops earlier thinking) is rendered as several
    sequences, each of which is what inference would see at that turn; they stay one row.
    """

    ids_T: np.ndarray[Any, np.dtype[np.int32]]
    labels_T: np.ndarray[Any, np.dtype[np.int32]]
    """``ids_T`` where the token is supervised, ``IGNORE`` elsewhere. Not shifted."""
    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to T."""

    @property
    def supervised(self) -> int:
        """Number of predictions that the loss is summed over: the first token of a sequence is never one."""
        total, start = 0, 0
        for length in self.lengths:
            total += int((self.labels_T[start + 1 : start + length] != IGNORE).sum())
            start += length
        return total


@dataclass(slots=True)
class MicroBatch:
    """Rows laid end to end without padding, for one forward and backward."""

    input_ids_1T: torch.Tensor
    labels_1T: torch.Tensor
    """Shifted: ``labels_1T[0, t]`` is the token that position t predicts, or ``IGNORE``."""
    position_ids_1T: torch.Tensor
    """Counted from 0 in every sequence."""
    cu_seqlens: list[int]
    """Where each sequence starts, and T at the end (flash attention's ``cu_seqlens``)."""
    shared: int = 0
    """If not 0: tokens of the first sequence, with which every other one begins, so that those are left out there."""
