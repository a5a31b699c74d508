"""Rows that a model is tried on where the user names none: those of the run that made it, if they are still there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune import hub
from swiftune.config import ExportArguments
from swiftune.errors import UsageError
from swiftune.hub import builtin
from swiftune.recipes.checkpoint_args import read_recorded
from swiftune.runtime.console import notice

if TYPE_CHECKING:
    from swiftune.data.render import Renderer
    from swiftune.types import Message, Row, Sample

QUESTIONS = (
    "Who are you?",
    "你是谁？",
    "What is the capital of France?",
    "Give three tips for staying healthy.",
    "给出保持健康的三个建议。",
    "Write a Python function that adds two numbers.",
    "Translate into Chinese: Good morning.",
    "Why is the sky blue?",
    "What is 17 times 3?",
    "用一句话介绍你自己。",
    "Write a short poem about the sea.",
    "Thank you!",
)
ROWS = 8
"""How many of the run's rows are asked, besides the questions."""


@dataclass(frozen=True)
class Prompt:
    """A chat to be answered."""

    messages: Sequence[Message]
    ids: list[int]


def samples_at_hand(args: ExportArguments, home: Path | None) -> Sequence[Sample]:
    """The rows of ``--dataset``; else of the run's data that lies on this disk; else the built-in identity questions.

    Args:
        home: the checkpoint's folder.

    Raises:
        UsageError, DataError: what ``--dataset`` names cannot be used.
    """
    if args.dataset:
        return _load(args.dataset, args.model_dump(), args)
    recorded = read_recorded(home) if home else {}
    own = [name for name in recorded.get("dataset") or [] if _is_here(name)]
    if own:
        try:
            return _load(own, recorded, args)
        except UsageError as error:
            notice(f"The run's own rows cannot be read any more ({error.what}); built-in ones are taken.")
    return _load([builtin.DATASET], recorded, args)


def _load(names: Sequence[str], settings: dict[str, Any], args: ExportArguments) -> Sequence[Sample]:
    from swiftune.data.identity import Identity
    from swiftune.data.ledger import Ledger
    from swiftune.data.load import load_samples

    return load_samples(
        names,
        lambda name: hub.find_dataset(name, use_hf=args.use_hf),
        ledger=Ledger(),
        columns=settings.get("columns"),
        seed=args.data_seed,
        identity=Identity.of(
            args.model_name or settings.get("model_name") or ["swift-robot"],
            args.model_author or settings.get("model_author") or ["swift"],
        ),
    )


def _is_here(name: str) -> bool:
    from swiftune.data.names import DatasetName

    try:
        named = DatasetName.parse(name).id
    except UsageError:
        return False
    return named == builtin.DATASET or os.path.exists(os.path.expanduser(named))


def prompts_of(samples: Sequence[Sample], renderer: Renderer, longest: int) -> list[Prompt]:
    """The built-in questions, and the first rows up to their last answer."""
    from swiftune.data.ledger import RowFault

    chats: list[Sequence[Message]] = [[{"role": "user", "content": question}] for question in QUESTIONS]
    chats += [_asked(sample.messages) for sample in samples[:ROWS] if not sample.tools]
    prompts = []
    for messages in chats:
        try:
            ids = renderer.prompt(messages)
        except RowFault:
            continue
        if 0 < len(ids) <= longest:
            prompts.append(Prompt(messages, ids))
    return prompts


def _asked(messages: Sequence[Message]) -> Sequence[Message]:
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return messages[:last]


def rows_of(samples: Sequence[Sample], renderer: Renderer, args: ExportArguments) -> list[Row]:
    """The first rows, rendered, none longer than ``--max_length``."""
    from swiftune.types import Row

    rendered = renderer.rows(list(samples[: args.quant_n_samples]))
    return [row for row in rendered if isinstance(row, Row) and len(row.ids_T) <= args.max_length]
