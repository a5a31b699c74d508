"""The figures of an evaluation while training: loss and accuracy, scores of generated answers, tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.config import SftArguments
from swiftune.errors import EvaluationError, OutputError, RunError, UsageError
from swiftune.recipes.opening import Opened
from swiftune.recipes.training_data import TrainingData
from swiftune.runtime.stop import StopRequest

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from swiftune.generate.transformers_engine import TransformersEngine
    from swiftune.recipes.evaluate.asking import Asker
    from swiftune.recipes.evaluate.scoring import Result
    from swiftune.tasks.task import Task
    from swiftune.train.lanes import Lanes
    from swiftune.train.objective import SupervisedObjective
    from swiftune.train.plan import Layout


@dataclass
class Evaluator:
    """What the loop calls when an evaluation is due."""

    args: SftArguments
    opened: Opened
    data: TrainingData
    objective: SupervisedObjective
    prepared: torch.nn.Module
    """The objective as ``accelerator`` placed it."""
    layout: Layout
    lanes: Lanes
    accelerator: Accelerator
    run: Path
    tasks: list[tuple[Task, int]]
    """Each with how many of its questions are asked."""

    def __call__(self, step: int, stop: StopRequest) -> dict[str, float] | None:
        """All figures: ``eval_loss``, ``eval_acc``, with ``--predict_with_generate`` ``eval_rouge-1`` ...
        ``eval_bleu-4``, and ``eval_<task>`` for each task of ``--eval_dataset``.

        Returns:
            ``None`` where the evaluation was cut short by Ctrl-C.
        """
        parts: list[Callable[[int, StopRequest], dict[str, float] | None]] = [self._loss] if self.data.val else []
        parts += [self._scores] if self.data.val and self.args.predict_with_generate else []
        parts += [self._tasks] if self.tasks else []
        metrics: dict[str, float] = {}
        for part in parts:
            found = part(step, stop)
            if found is None:
                return None
            metrics |= found
        return metrics

    def _loss(self, _step: int, stop: StopRequest) -> dict[str, float] | None:
        from swiftune.train.evaluate import evaluate

        assert self.data.val is not None
        return evaluate(
            self.prepared, self.data.val, layout=self.layout, lanes=self.lanes, accelerator=self.accelerator, stop=stop
        )

    def _tasks(self, step: int, stop: StopRequest) -> dict[str, float] | None:
        """The figures of the tasks, each process asking its share of their questions."""
        from swiftune.recipes.evaluate.asking import Asker
        from swiftune.recipes.infer import sampling_of

        sampling = sampling_of(self.args, self.args.seed)
        if "max_new_tokens" not in self.args.model_fields_set:  # a task knows how long its answers are
            sampling = replace(sampling, max_new_tokens=None)
        figures: dict[str, float] = {}
        with self.objective.generating(), closing(self._engine()) as engine:
            asker = Asker(lambda: engine, self.opened.renderer, sampling, batch=self.args.per_device_eval_batch_size)
            for task, count in self.tasks:
                try:
                    result = self._result(task, count, asker, self.run / f"eval-{step}", stop)
                except OutputError:
                    raise
                except (RunError, UsageError) as error:
                    what = f"{task.name} could not be scored after step {step}: {error.what}"
                    raise EvaluationError(what, error.cure) from error
                if result is None:
                    return None
                for number, figure in enumerate(name for name in result.totals if result.kept[name]):
                    figures[f"eval_{task.name}{f'_{figure}' if number else ''}"] = result.value(figure)
        return figures

    def _result(self, task: Task, count: int, asker: Asker, folder: Path, stop: StopRequest) -> Result | None:
        from accelerate.utils import gather_object

        from swiftune.recipes.evaluate.kept import Kept
        from swiftune.recipes.evaluate.scoring import score

        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        share, quiet = range(process, count, processes), process > 0
        name = task.name if processes == 1 else f"{task.name}.{process}"
        for stale in folder.glob(f"{name}.*jsonl"):
            stale.unlink()  # of a run that was resumed from before this step
        result, failed = None, None
        try:
            with Kept(folder / f"{name}.jsonl") as answers:
                if asker.answer(task, share, answers, stop=stop, quiet=quiet):
                    result = score(task, share, asker, answers, quiet=quiet)
        except (RunError, UsageError) as error:  # raised in every process, or the others would wait for this one
            failed = error
        own = [(result.kept if result else None, failed)]
        shares = gather_object(own) if processes > 1 else own
        if failed := next((error for _, error in shares if error), None):
            raise failed
        found = [kept for kept, _ in shares if kept is not None]
        if result is None or len(found) < processes:
            return None
        for each in found:
            for figure, kept in each.items():
                result.kept[figure] |= kept
        return result

    def _engine(self) -> TransformersEngine:
        from swiftune.generate.transformers_engine import TransformersEngine

        return TransformersEngine(
            self.objective.model,
            self.opened.tokenizer,
            stop_ids=self.opened.renderer.stop_ids,
            max_batch_size=self.args.per_device_eval_batch_size,
            within=self.accelerator.autocast,
        )

    def _scores(self, step: int, stop: StopRequest) -> dict[str, float] | None:
        """ROUGE and BLEU of the answers to the validation rows, each process answering its share."""
        from accelerate.utils import gather_object

        from swiftune.data.ledger import Ledger
        from swiftune.generate.text_metrics import text_metrics
        from swiftune.recipes.answers import AnswerFile
        from swiftune.recipes.infer import sampling_of

        assert self.data.val_samples is not None
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.data.val_samples[process::processes]
        ledger = Ledger()
        ledger.use(len(mine))
        name = f"predictions-{step}.jsonl" if processes == 1 else f"predictions-{step}.{process}.jsonl"
        engine = self._engine()
        answers = AnswerFile(
            engine=engine,
            renderer=self.opened.renderer,
            sampling=sampling_of(self.args, self.args.seed),
            path=self.run / name,
            batch=self.args.per_device_eval_batch_size,
            max_prompt=self.args.max_length,
            ledger=ledger,
        )
        with self.objective.generating(), closing(engine):
            answers.fill(mine, stream=False, stop=stop)
        own = [(bool(stop), answers.pairs)]
        shares = gather_object(own) if processes > 1 else own
        if any(cut_short for cut_short, _ in shares):
            return None
        pairs = [pair for _, pairs in shares for pair in pairs]
        scores = text_metrics([text for text, _ in pairs], [reference for _, reference in pairs])
        return {f"eval_{name}": value for name, value in scores.items()}
