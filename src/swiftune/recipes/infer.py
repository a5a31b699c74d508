"""``swift infer``: a chat with a model, or a data set answered into a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune import hub
from swiftune.config import GenerateArguments, InferArguments
from swiftune.errors import DataError
from swiftune.recipes.checkpoint_args import Resolved, resolve
from swiftune.recipes.engines import open_engine
from swiftune.recipes.opening import Opened, open_tokenizer
from swiftune.runtime import garbage
from swiftune.runtime.console import say

if TYPE_CHECKING:
    from swiftune.data.ledger import Ledger
    from swiftune.data.store import SampleStore
    from swiftune.generate.conversation import Conversation
    from swiftune.generate.engine import Engine, Sampling

Talk = Callable[["Conversation", bool], None]
"""Holds a conversation with the user. The second argument: whether answers are shown while they are written."""


def infer(args: InferArguments, talk: Talk) -> None:
    """The whole of the command.

    Args:
        talk: what to chat with, where no data set is named.

    Raises:
        SwiftuneError: see ``errors``; ``Interrupted`` after Ctrl-C.
    """
    resolved = resolve(args)
    args = resolved.args
    opened = open_tokenizer(args, adapters=resolved.adapters)
    engine = open_engine(args, opened, resolved.adapters)
    garbage.look_as_usual()
    with closing(engine):
        if args.dataset or args.val_dataset:
            _answer_rows(args, opened, engine, _result_path(args, resolved))
        else:
            from swiftune.generate.conversation import Conversation

            shown = " + ".join(map(str, resolved.adapters)) or opened.folder
            say(f"Model: {shown}", style="dim")
            talk(
                Conversation(engine, opened.renderer, sampling_of(args, args.seed), max_prompt=args.max_length),
                args.stream is not False,
            )


def sampling_of(args: GenerateArguments, seed: int | None) -> Sampling:
    """How the arguments say that answers are drawn."""
    from swiftune.generate.engine import Sampling

    return Sampling(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop_words),
        seed=seed,
    )


def _result_path(args: InferArguments, resolved: Resolved[InferArguments]) -> Path:
    if args.result_path:
        return Path(args.result_path)
    name = f"{datetime.now():%Y%m%d-%H%M%S}.jsonl"
    return (resolved.home / "infer_result" if resolved.home else Path("result")) / name


def _answer_rows(args: InferArguments, opened: Opened, engine: Engine, path: Path) -> None:
    from swiftune.data.ledger import Ledger
    from swiftune.recipes.answers import AnswerFile

    ledger, aside = Ledger(strict=args.strict), path.parent / f"{path.stem}.set_aside.jsonl"
    samples = _samples(args, ledger)
    file = AnswerFile(
        engine, opened.renderer, sampling_of(args, args.seed), path, _rows_at_once(args), args.max_length, ledger
    )
    figures = file.fill(samples, stream=bool(args.stream))
    if ledger.aside:
        say(ledger.summary())
        ledger.write(aside)
    if not file.written:
        raise DataError("No row could be answered.", f"The reasons are in {aside}.")
    say("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    say(f"The answers are in {path}")


def _rows_at_once(args: InferArguments) -> int:
    """vLLM sees to it by itself how many it works on; it is given enough to choose from."""
    chosen = args.infer_backend == "transformers" or "max_batch_size" in args.model_fields_set
    return args.max_batch_size if chosen else 32


def _samples(args: InferArguments, ledger: Ledger) -> SampleStore:
    """The rows to be answered; with --load_data_args those that the run was validated on, held back in the same way."""
    from swiftune.data.identity import Identity
    from swiftune.data.load import load_samples, split

    again = args.load_data_args
    held_back = again and not args.val_dataset
    samples = load_samples(
        args.val_dataset if again and args.val_dataset else [*args.val_dataset, *args.dataset],
        lambda name: hub.find_dataset(name, use_hf=args.use_hf),
        ledger=ledger,
        columns=args.columns,
        seed=args.data_seed,
        identity=Identity.of(args.model_name, args.model_author),
        needs_answer=again,
    )
    if held_back and args.split_dataset_ratio:
        _, samples = split(samples, args.split_dataset_ratio, args.data_seed)
    return samples
