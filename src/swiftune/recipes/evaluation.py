"""The figures of an evaluation while training: loss and accuracy, and the scores of generated answers if asked for."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.config import SftArguments
from swiftune.recipes.opening import Opened
from swiftune.recipes.training_data import TrainingData
from swiftune.runtime.stop import StopRequest

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

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

    def __call__(self, step: int, stop: StopRequest) -> dict[str, float] | None:
        """``eval_loss``, ``eval_acc`` and, with ``--predict_with_generate``, ``eval_rouge-1`` ... ``eval_bleu-4``.

        Returns:
            ``None`` where the evaluation was cut short by Ctrl-C.
        """
        from swiftune.train.evaluate import evaluate

        assert self.data.val is not None
        metrics = evaluate(
            self.prepared, self.data.val, layout=self.layout, lanes=self.lanes, accelerator=self.accelerator, stop=stop
        )
        if metrics is None or not self.args.predict_with_generate:
            return metrics
        scores = self._scores(step, stop)
        return None if scores is None else metrics | scores

    def _scores(self, step: int, stop: StopRequest) -> dict[str, float] | None:
        """ROUGE and BLEU of the answers to the validation rows, each process answering its share."""
        from accelerate.utils import gather_object

        from swiftune.data.ledger import Ledger
        from swiftune.generate.text_metrics import text_metrics
        from swiftune.generate.transformers_engine import TransformersEngine
        from swiftune.recipes.answers import AnswerFile
        from swiftune.recipes.infer import sampling_of

        assert self.data.val_samples is not None
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.data.val_samples[process::processes]
        ledger = Ledger()
        ledger.use(len(mine))
        engine = TransformersEngine(
            self.objective.model,
            self.opened.tokenizer,
            stop_ids=self.opened.renderer.stop_ids,
            max_batch_size=self.args.per_device_eval_batch_size,
            within=self.accelerator.autocast,
        )
        name = f"predictions-{step}.jsonl" if processes == 1 else f"predictions-{step}.{process}.jsonl"
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
