"""``swift eval --eval_backend lm_eval``: our model, the tasks and the figures of EleutherAI's evaluation harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swiftune.config import EvalArguments
from swiftune.errors import MissingPackageError, NotFoundError, RunError, UsageError
from swiftune.recipes.evaluate.candidates import Candidate, candidates_of


def evaluate_with_harness(args: EvalArguments) -> tuple[str, Path]:
    """Evaluates, and writes figures and answers into the model's folder.

    Returns:
        The harness's own table, and the folder.

    Raises:
        MissingPackageError: it is not installed.
        NotFoundError: it has no such task.
        RunError: it failed, for example because a task's data could not be fetched.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise MissingPackageError(
            f"--eval_backend lm_eval needs a package ({error}).", "Install it: pip install 'swiftune[lm-eval]'"
        ) from error
    if args.infer_backend != "transformers":
        raise UsageError("--eval_backend lm_eval runs on --infer_backend transformers.")
    files = [Path(name) for name in args.eval_dataset if Path(name).suffix in (".yaml", ".yml")]
    manager = TaskManager(include_path=[str(file.parent) for file in files] or None)
    names = [Path(name).stem if Path(name) in files else name for name in args.eval_dataset]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise NotFoundError(f"lm_eval has no task {' and '.join(unknown)}.", _nearest(unknown[0], manager.all_tasks))
    (candidate,) = candidates_of(args)
    chat = bool(candidate.opened.tokenizer.chat_template)
    try:
        found = lm_eval.simple_evaluate(
            model=_model(candidate, args),
            tasks=names,
            num_fewshot=args.num_fewshot,
            limit=args.eval_limit,
            task_manager=manager,
            apply_chat_template=chat,
            system_instruction=candidate.resolved.args.system if chat else None,
            random_seed=args.seed,
            numpy_random_seed=args.seed,
            torch_random_seed=args.seed,
            fewshot_random_seed=args.seed,
        )
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # of the harness, of `datasets`, of a hub: dozens of kinds
        raise RunError(f"lm_eval could not evaluate {', '.join(names)}: {type(error).__name__}: {error}") from error
    assert found is not None
    return str(make_table(found)), _keep(found, candidate)


def _model(candidate: Candidate, args: EvalArguments) -> Any:
    from lm_eval.models.huggingface import HFLM

    from swiftune.recipes.engines import load_for_inference

    run = candidate.resolved
    model = load_for_inference(run.args, candidate.opened, run.adapters)
    # It counts every model that is not of its own loading as a plain one, adapters included.
    return HFLM(
        pretrained=model,
        tokenizer=candidate.opened.tokenizer,
        batch_size=args.max_batch_size,
        max_length=args.max_length,
    )


def _keep(found: dict[str, Any], candidate: Candidate) -> Path:
    from swiftune.recipes.evaluate import write

    folder = candidate.folder / "lm_eval"
    for task, samples in found.pop("samples", {}).items():
        lines = [json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples]
        write(folder / f"{task}.jsonl", "".join(lines))
    write(folder / "results.json", json.dumps(found, indent=2, ensure_ascii=False, default=str))
    return folder


def _nearest(name: str, known: list[str]) -> str:
    from swiftune.config.values import nearest

    near = nearest(name, known)
    return f"Did you mean {near}?" if near else "Name a task of lm_eval, or the .yaml file of one."
