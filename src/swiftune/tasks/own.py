"""Two tasks about a model that was tuned here: whether it learned who it is, and what it lost.

``identity_accuracy``: the questions that it was trained on. ``fidelity``: questions that it was never trained on;
its own, or those of a file. Compared with the base model, the difference is what the training cost.

{"question": "What is the capital of France?", "answer": "Paris"}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swiftune.data.store import SampleStore
from swiftune.errors import DataError
from swiftune.runtime.console import notice
from swiftune.tasks.rows import Rows, said_in
from swiftune.types import Sample

GENERAL = Path(__file__).with_name("general.jsonl")
"""Questions that a small model, too, can be expected to answer; an answer has to contain the reference."""


def identity_accuracy(trained: SampleStore, who: Sequence[str]) -> Rows:
    """Those of the trained rows whose answers say a name; every name that the answer says has to be said.

    Raises:
        DataError: no row does.
    """
    telling = [i for i, sample in enumerate(trained) if said_in(sample.messages[-1].get("content") or "", who)]
    telling = list({_question(trained[i]): i for i in reversed(telling)}.values())[::-1]
    if not telling:
        raise DataError(
            f"identity_accuracy: none of {len(trained)} trained rows has an answer with {' or '.join(who)}.",
            "Name what was taught with --model_name and --model_author, and the rows with --dataset.",
        )
    return Rows("identity_accuracy", SampleStore(trained.parts, trained.rows_N[telling]), ["identity"], who=who)


def fidelity(rows: SampleStore, trained: SampleStore | None, *, own: bool) -> Rows:
    """The rows whose questions were not trained on.

    Args:
        own: they are those of ``GENERAL``; answers to others are scored by ROUGE.
    """
    seen = {_question(sample) for sample in trained} if trained is not None else set()
    kept = [i for i, sample in enumerate(rows) if _question(sample) not in seen]
    if len(kept) < len(rows):
        notice(f"fidelity: {len(rows) - len(kept)} of {len(rows)} questions were trained on, and are not asked.")
    if not kept:
        raise DataError("fidelity: all of its questions were trained on.", "Name other rows: fidelity=FILE.")
    return Rows("fidelity", SampleStore(rows.parts, rows.rows_N[np.array(kept)]), ["contains" if own else "rouge"])


def _question(sample: Sample) -> int:
    """What two rows with the same last question have in common."""
    asked = [message["content"] for message in sample.messages if message["role"] == "user"]
    return hash(" ".join(asked[-1].casefold().split()) if asked else "")
