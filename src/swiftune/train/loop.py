"""The training loop, from top to bottom.

A step: plan its micro-batches, run them, divide by the step's supervised tokens over all processes, clip, update; then
log, evaluate and save when it is time. One loop serves every objective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftune.config import SftArguments
from swiftune.errors import (
    CheckpointError,
    DivergedError,
    EvaluationError,
    Interrupted,
    OutOfMemoryError,
    OutputError,
    RunError,
)
from swiftune.runtime import hardware
from swiftune.runtime.console import hushed, warn
from swiftune.runtime.stop import StopRequest
from swiftune.train import bad_numbers, checkpoint
from swiftune.train.checkpoint import TrainerState
from swiftune.train.feed import Feed
from swiftune.train.lanes import Lanes, side_by_side
from swiftune.train.out_of_memory import within_memory
from swiftune.train.pack import pack
from swiftune.train.plan import Layout
from swiftune.train.run_log import RunLog, clock, has_totals
from swiftune.train.saver import Saver
from swiftune.train.window import Window
from swiftune.types import Row

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

Evaluate = Callable[[int, StopRequest], "dict[str, float] | None"]


class Trainer:
    """Everything a run needs, and the loop over it.

    Args:
        objective: micro-batch to sums, prepared by ``accelerator``.
        model: what is saved (PEFT's wrapper, or the model).
        layout: how rows are laid out in micro-batches.
        lanes: where they are computed.
        dtype: in which a fully tuned model is saved.
        evaluate: the metrics (``eval_loss``, ...) of the moment; ``None`` without validation rows.
        run: the run's folder, ``args.json`` in it.
        state: what the run is made of; where it is.
        memory: bytes that the run needs, as it was planned; what is kept beyond them is given back after a step.
        resume_from: a whole checkpoint, or ``None``.
    """

    def __init__(
        self,
        args: SftArguments,
        *,
        objective: torch.nn.Module,
        model: torch.nn.Module,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout,
        lanes: Lanes,
        dtype: torch.dtype,
        run: Path,
        state: TrainerState,
        memory: int,
        evaluate: Evaluate | None = None,
        resume_from: Path | None = None,
    ) -> None:
        self.args, self.objective, self.model, self.feed = args, objective, model, feed
        self.optimizer, self.schedule, self.accelerator = optimizer, schedule, accelerator
        self.tokenizer, self.layout, self.lanes, self.dtype, self.run = tokenizer, layout, lanes, dtype, run
        self.evaluate, self.resume_from = evaluate, resume_from
        self.state, self.memory, self.saved_step = state, memory, 0
        main = accelerator.is_main_process
        self.saver = Saver(run, tokenizer, args.save_total_limit)
        self.window = Window(accelerator.device)
        self.log = RunLog(run if main else None, feed.steps, accelerator.log)

    def train(self) -> TrainerState:
        """Trains to the last step.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last whole step has been written.
            OutOfMemoryError: not even one row fits; a checkpoint of the last whole step has been written.
            EvaluationError: a task could not be scored; a checkpoint of the last whole step has been written.
            DivergedError: too many steps in a row could not be applied.
            OutputError: the last checkpoint could not be written.
        """
        with self.log, StopRequest() as stop, self.saver:
            if self.resume_from is not None:
                self._resume(self.resume_from)
            else:
                self.log.begin()
            self.began = time.perf_counter() - self.state.elapsed
            try:
                self._to_the_end(stop)
            except (OutOfMemoryError, EvaluationError):
                self._keep()
                raise
            self._be_saved()
            if self._asked(stop):
                raise self._interrupted(stop)
            self._summarise()
        return self.state

    def _to_the_end(self, stop: StopRequest) -> None:
        if self.args.eval_on_start and self.state.step == 0:
            self._evaluate(stop)
        ended = self._stale()
        while self.state.step < self.feed.steps and not ended:
            self._step()
            asked = self._asked(stop)
            if self._log_due() or asked:
                self._log()
            paused = time.perf_counter()
            evaluated = self._due("eval") and self._evaluate(stop)
            ended = self._stale() or asked or self._asked(stop)
            if self._due("save") or ended:
                self._save(evaluated)
            elif evaluated and self.accelerator.is_main_process:
                self.saver.draw()
            self.window.began += time.perf_counter() - paused
        self._log()

    # -- a step --------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One optimizer step."""
        acc, window = self.accelerator, self.window
        rows = self.feed.take(self.state.step)
        if not rows:
            raise RunError(
                f"The data ended at step {self.state.step} of {self.feed.steps}.", "Set a lower --max_steps."
            )
        supervised, tokens = sum(row.supervised for row in rows), sum(len(row.ids_T) for row in rows)
        random_state, budget = checkpoint.random_state(), self.layout.budget

        def undo() -> None:
            self.optimizer.zero_grad()
            checkpoint.set_random_state(random_state)

        self.objective.train()
        sums = within_memory(partial(self._gradient, supervised), rows, self.layout, acc, undo)
        self._sum_gradients()
        limit = self.args.max_grad_norm or math.inf
        grad_norm = acc.clip_grad_norm_(self.objective.parameters(), limit)
        applied = self._apply(sums[0], grad_norm)
        self.optimizer.zero_grad()
        hardware.give_back_freed_memory(above=self.memory)
        self.state.step += 1
        self.state.rows += len(rows)
        self.state.tokens += tokens
        if applied:
            window.sums += sums
            window.grad_norm = grad_norm
            window.supervised += supervised
            window.tokens += tokens
            window.steps += 1
        self.log.advance(self.state.step)
        if self.layout.budget != budget:
            self._write({"max_tokens_per_batch": self.layout.budget})
        if not applied:
            self._pass_over(rows, loss=sums[0] / max(supervised, 1), grad_norm=grad_norm)

    def _apply(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Updates the weights, if all numbers of the step are finite. Returns whether it did, or will soon.

        In float16 a gradient that is not finite only says that the loss was scaled too much, until it is not scaled.
        """
        scaler = self.accelerator.scaler
        finite = bad_numbers.are_finite(loss), bad_numbers.are_finite(grad_norm)
        scaling = scaler is not None and scaler.get_scale() > 1
        good = not self._over_processes(int(not finite[0] or not (finite[1] or scaling)))
        if good:
            self.optimizer.step()
        elif scaler is not None:
            scaler.update()
        with hushed("Detected call of `lr_scheduler.step", UserWarning):  # the first step of all may be passed over
            self.schedule.step()
        self.state.bad_steps = 0 if good else self.state.bad_steps + 1
        return good

    def _pass_over(self, rows: list[Row], **figures: torch.Tensor) -> None:
        """Writes down a step that was not applied; ends the run where there were too many of them in a row."""
        step, many = self.state.step, self.args.max_bad_steps
        told = ", ".join(f"{name} {float(value):g}" for name, value in figures.items())
        if self.accelerator.is_main_process:
            warn(f"Step {step} was not applied: {told}. Its rows are in {self.run / bad_numbers.FILE}.")
            try:
                bad_numbers.record(self.run, step, rows, self.objective, self.tokenizer, **figures)
            except OSError as error:
                warn(f"{self.run / bad_numbers.FILE} could not be written: {error.strerror or error}.")
        self._write({"bad_steps": self.state.bad_steps})
        if self.state.bad_steps >= many:
            raise DivergedError(
                f"{many} steps in a row, up to step {step}, had a loss or a gradient that is not finite; none of them "
                f"was applied. Their rows are in {self.run / bad_numbers.FILE}.",
                "Look at those rows, or set a lower --learning_rate.",
            )

    def _gradient(self, supervised: int, work: list[list[list[Row]]]) -> torch.Tensor:
        """Adds the gradient of this process's micro-batches to the parameters'. Returns its sums (loss, correct)."""
        acc = self.accelerator
        if self.lanes.count > 1:
            return side_by_side(self.lanes, self.objective, work, supervised, share=self.layout.share)
        total = torch.zeros_like(self.window.sums)
        with acc.no_sync(self.objective):
            for rows in work[0]:
                sums = self.objective(pack(rows, acc.device, share=self.layout.share))
                # DDP averages over processes; the sum over all of them is divided by the step's tokens instead.
                acc.backward(sums.loss * (acc.num_processes / max(supervised, 1)))
                total += torch.stack([sums.loss.detach(), sums.correct]).to(total)
        return total

    def _sum_gradients(self) -> None:
        """Adds up the gradients of all processes.

        DDP does it in a backward pass. One that fails in a process leaves the others waiting in it, so it is a pass of
        its own, which only adds zero to every gradient, once all processes are known to have theirs.
        """
        if self.accelerator.num_processes > 1:
            with self.accelerator.trigger_sync_in_backward(self.objective):
                trained = [p for p in self.objective.parameters() if p.requires_grad]
                self.accelerator.backward(0 * torch.stack([p.sum() for p in trained]).sum())

    def _over_processes(self, count: int) -> int:
        if self.accelerator.num_processes == 1:
            return count
        return int(self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device), "sum"))

    # -- what happens between steps ------------------------------------------------------------------------------

    def _due(self, what: str) -> bool:
        """Whether it is time to ``eval`` or ``save``: at the chosen steps or epochs, and at the end."""
        if what == "eval" and self.evaluate is None:
            return False
        strategy = getattr(self.args, f"{what}_strategy")
        step = self.state.step
        if strategy == "no":
            return False
        if step == self.feed.steps:
            return True
        if what == "save" and self.state.bad_steps:  # the weights may be what is at fault
            return False
        if strategy == "epoch":
            return math.floor(self.feed.epoch(step)) > math.floor(self.feed.epoch(step - 1))
        return bool(step % getattr(self.args, f"{what}_steps") == 0)

    def _log_due(self) -> bool:
        step = self.state.step
        first = step == 1 and self.args.logging_first_step
        return first or step == self.feed.steps or step % self.args.logging_steps == 0

    def _log(self) -> None:
        """Logs the means of the steps since the last logged one, if there are any, and begins a new window."""
        if unsaved := self.saver.news():
            self._write({"unsaved": unsaved})
        window, self.window = self.window, Window(self.accelerator.device)
        if not window.steps:
            return
        loss, correct = self.accelerator.reduce(window.sums, "sum").tolist()
        seconds = window.seconds
        self.state.loss_sum += loss
        self.state.loss_tokens += window.supervised
        record = {
            "loss": loss / max(window.supervised, 1),
            "acc": correct / max(window.supervised, 1),
            "grad_norm": float(window.grad_norm),
            "learning_rate": self.schedule.get_last_lr()[0],
            "train_speed(iter/s)": window.steps / seconds,
            "tokens/s": window.tokens / seconds,
        }
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        step, steps = self.state.step, self.feed.steps
        self.state.elapsed = time.perf_counter() - self.began
        place = {
            "epoch": self.feed.epoch(step),
            "global_step/max_steps": f"{step}/{steps}",
            "percentage": f"{100 * step / steps:.2f}%",
            "elapsed_time": clock(self.state.elapsed),
            "remaining_time": clock(self.state.elapsed / max(step, 1) * (steps - step)),
            "memory(GiB)": hardware.peak_memory(self.accelerator.device) / 2**30,
        }
        self.log.write(record | place, step)

    def _evaluate(self, stop: StopRequest) -> bool:
        """Evaluates, logs, and keeps count of what was best. False where it was cut short."""
        assert self.evaluate is not None
        try:
            metrics = self.evaluate(self.state.step, stop)
        except OutputError as error:
            warn(f"{error} The evaluation of step {self.state.step} counts for nothing.")
            metrics = None
        if metrics is None:
            return False
        self.state.metrics = metrics
        self._write(dict(metrics))
        if self.state.step and self._better(self.state.best_metric):
            self.state.best_metric, self.state.stale_evaluations = self._metric(), 0
        else:
            self.state.stale_evaluations += bool(self.state.step)
        return True

    def _metric(self) -> float | None:
        """The figure of the last evaluation by which the best is chosen; ``None`` where it could not be had."""
        value = self.state.metrics.get(f"eval_{self.args.metric_for_best_model}")
        if value is None:
            warn(f"The evaluation gives no {self.args.metric_for_best_model}: no checkpoint can be called the best.")
        return value

    def _better(self, than: float | None) -> bool:
        value = self._metric()
        if value is None or than is None:
            return value is not None
        return value > than if self.args.greater_is_better else value < than

    def _stale(self) -> bool:
        limit = self.args.early_stop_interval
        return limit is not None and self.state.stale_evaluations >= limit

    def _asked(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop; all must agree, or one would wait for the others forever."""
        return bool(self._over_processes(int(bool(stop))))

    # -- what stays on disk --------------------------------------------------------------------------------------

    def _save(self, evaluated: bool) -> None:
        """Writes a checkpoint. It can become the best one only if it was ``evaluated``."""
        acc, state, self.saved_step = self.accelerator, self.state, self.state.step
        state.elapsed, state.budget = time.perf_counter() - self.began, self.layout.budget
        state.feed, state.since_logged = self.feed.state(state.step), self.window.seconds
        if evaluated and self._better(state.saved_best):
            state.saved_best, state.best_step = self._metric(), state.step
        processes = checkpoint.of_all_processes(acc, {"window": self.window.state()})
        if acc.is_main_process:
            self.saver.wait()  # two copies at once would take twice the memory
            taken = checkpoint.snapshot(
                state,
                model=self.model,
                dtype=self.dtype,
                optimizer=self.optimizer,
                schedule=self.schedule,
                scaler=acc.scaler.state_dict() if acc.scaler is not None else None,
                processes=processes,
                weights_only=self.args.save_only_model,
            )
            self.saver.save(taken, state.best_step)
        acc.wait_for_everyone()

    def _keep(self) -> None:
        """Saves what has been trained, if it is not."""
        if self.state.step != self.saved_step:
            self._log()
            self._save(evaluated=False)

    def _be_saved(self) -> None:
        """Waits until all is written. Raises OutputError, in every process, where the last checkpoint is not."""
        self.saver.wait()
        self.accelerator.wait_for_everyone()
        unsaved = self.saver.unsaved
        if self._over_processes(int(unsaved is not None)):
            raise OutputError(f"Training has ended, and what was trained last is lost. {unsaved or ''}".strip())

    def _resume(self, folder: Path) -> None:
        checkpoint.refuse_another_run(folder, self.state)
        self.state, own = checkpoint.load(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            scaler=self.accelerator.scaler,
            process=self.accelerator.process_index,
            settings=not self.args.resume_anyway,
        )
        self.window.go_on(own["window"], self.state.since_logged)
        self.saved_step = self.state.step
        if self.state.step >= self.feed.steps and (folder.parent != self.run or has_totals(self.run)):
            raise CheckpointError(
                f"--resume_from_checkpoint {folder}: it is at step {self.state.step}, and the run has "
                f"{self.feed.steps} steps: nothing is left to do.",
                "Set a higher --num_train_epochs or --max_steps, and --resume_anyway true.",
            )
        self.feed.go_to(self.state.feed)
        self.log.go_on_from(self.state.step)
        if self.accelerator.is_main_process and folder.parent == self.run:
            self.saver.settle(self.state.step, self.state.best_step)
        if not self.args.max_tokens_per_batch:
            self.layout.budget = self.state.budget or self.layout.budget
        if self.state.lanes != self.layout.lanes:
            told = f"{self.state.lanes} micro-batches at a time, and now {self.layout.lanes}, as cores and memory allow"
            warn(f"The run computed {told}: dropout is drawn otherwise, and the last bits will be others.")
            self.state.lanes = self.layout.lanes

    def _summarise(self) -> None:
        """The last line of the log: the totals, under the Trainer's usual names."""
        seconds = self.state.elapsed = time.perf_counter() - self.began
        self._write(
            {
                "train_runtime": seconds,
                "train_loss": self.state.loss_sum / max(self.state.loss_tokens, 1),
                "train_samples_per_second": self.state.rows / seconds,
                "train_steps_per_second": self.state.step / seconds,
                "train_tokens_per_second": self.state.tokens / seconds,
            }
        )

    def _interrupted(self, stop: StopRequest) -> Interrupted:
        error = Interrupted(f"stopped after step {self.state.step} of {self.feed.steps}; everything up to it is saved.")
        error.exit_code = stop.exit_code if stop else Interrupted.exit_code
        return error
