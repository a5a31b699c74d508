"""The tasks that the arguments of a command name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.config import EvalArguments, InferArguments, SftArguments
from swiftune.data.ledger import Ledger
from swiftune.errors import DataError
from swiftune.runtime.console import say
from swiftune.tasks.named import Setting, Trained, make_task

if TYPE_CHECKING:
    from swiftune.tasks.task import Task


def tasks_of(
    args: EvalArguments | SftArguments, run: InferArguments | SftArguments | None, *, aside: Path
) -> list[tuple[Task, int]]:
    """The tasks of ``--eval_dataset``, each with how many of its questions are asked.

    Args:
        run: says what the model was trained on, where ``args`` does not.
        aside: where rows are listed that are no questions with an answer.

    Raises:
        NotFoundError: there is no such task, file or data set.
        DataError: rows that cannot be used, or two tasks of one name.
    """
    ledger = Ledger(strict=args.strict)
    rows = args if args.dataset else run
    held_back = 0.0 if rows is None or rows.val_dataset else rows.split_dataset_ratio
    setting = Setting(
        ledger,
        metrics=args.metric,
        shots=args.num_fewshot,
        use_hf=args.use_hf,
        columns=args.columns,
        seed=args.data_seed,
        trained=Trained(rows.dataset, rows.data_seed, rows.dataset_shuffle, held_back, rows.columns) if rows else None,
        name=args.model_name or (run.model_name if run else None),
        author=args.model_author or (run.model_author if run else None),
        judge_url=args.judge_url,
        judge_model=args.judge_model,
    )
    made = [make_task(text, setting) for text in args.eval_dataset]
    tasks = [(task, min(count, args.eval_limit or count)) for task, count in made]
    names = [task.name for task, _ in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"--eval_dataset: two tasks are called {' and '.join(twice)}.", "Rename one of the files.")
    if ledger.aside:
        say(ledger.summary())
        with suppress(OSError):  # the next line says what is wrong
            aside.parent.mkdir(parents=True, exist_ok=True)
        ledger.write(aside)
    return tasks
