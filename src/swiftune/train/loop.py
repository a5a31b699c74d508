"""The training loop, from top to bottom.

A step: plan its micro-batches, run them, divide by the step's supervised tokens over all processes, clip, update; then
log, evaluate and save when it is time. One loop serves every objective.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftune.config import SftArguments
from swiftune.errors import CheckpointError, Interrupted, RunError
from swiftune.runtime import hardware
from swiftune.runtime.console import warn
from swiftune.runtime.stop import StopRequest
from swiftune.train import checkpoint, plots
from swiftune.train.checkpoint import TrainerState
from swiftune.train.feed import Feed
from swiftune.train.pack import pack
from swiftune.train.plan import plan_step
from swiftune.train.run_log import RunLog, clock

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

Evaluate = Callable[[int, StopRequest], "dict[str, float] | None"]


class Window:
    """Sums over the steps since the last logged one; tensors stay on the device until they are logged."""

    def __init__(self, device: torch.device) -> None:
        self.began = time.perf_counter()
        self.sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self.supervised = self.tokens = self.steps = 0


class Trainer:
    """Everything a run needs, and the loop over it.

    Args:
        objective: micro-batch to sums, prepared by ``accelerator``.
        model: what is saved (PEFT's wrapper, or the model).
        budget: tokens in a micro-batch.
        dtype: in which a fully tuned model is saved.
        evaluate: the metrics (``eval_loss``, ...) of the moment; ``None`` without validation rows.
        run: the run's folder, ``args.json`` in it.
        state: what the run is made of; where it is.
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
        budget: int,
        dtype: torch.dtype,
        run: Path,
        state: TrainerState,
        evaluate: Evaluate | None = None,
        resume_from: Path | None = None,
    ) -> None:
        self.args, self.objective, self.model, self.feed = args, objective, model, feed
        self.optimizer, self.schedule, self.accelerator = optimizer, schedule, accelerator
        self.tokenizer, self.budget, self.dtype, self.run = tokenizer, budget, dtype, run
        self.evaluate, self.resume_from = evaluate, resume_from
        self.state = state
        main = accelerator.is_main_process
        self.log = RunLog(run if main else None, feed.steps, accelerator.log)

    def train(self) -> TrainerState:
        """Trains to the last step.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last whole step has been written.
        """
        with self.log, StopRequest() as stop:
            if self.resume_from is not None:
                self._resume(self.resume_from)
            self.began = time.perf_counter() - self.state.elapsed
            if self.args.eval_on_start and self.state.step == 0:
                self._evaluate(stop)
            window = Window(self.accelerator.device)
            ended = self._stale()
            while self.state.step < self.feed.steps and not ended:
                grad_norm = self._step(window)
                asked = self._asked(stop)
                if self._log_due() or asked:
                    self._log(window, grad_norm)
                    window = Window(self.accelerator.device)
                paused = time.perf_counter()
                evaluated = self._due("eval") and self._evaluate(stop)
                ended = self._stale() or asked or self._asked(stop)
                if self._due("save") or ended:
                    self._save(evaluated)
                elif evaluated:
                    self._draw()
                window.began += time.perf_counter() - paused
            if window.steps:
                self._log(window, grad_norm)
            if self._asked(stop):
                raise self._interrupted(stop)
            self._summarise()
        return self.state

    # -- a step --------------------------------------------------------------------------------------------------

    def _step(self, window: Window) -> float:
        """One optimizer step. Returns the norm of the gradient before clipping."""
        acc = self.accelerator
        step_rows = self.feed.take(self.state.step)
        if not step_rows.lengths:
            raise RunError(
                f"The data ended at step {self.state.step} of {self.feed.steps}.", "Set a lower --max_steps."
            )
        plan = plan_step(step_rows.lengths, budget=self.budget, processes=acc.num_processes)[acc.process_index]
        batches = [[step_rows.read(i) for i in positions] for positions in plan]
        supervised = self._over_processes(sum(row.supervised for rows in batches for row in rows))
        self.objective.train()
        for number, rows in enumerate(batches, 1):
            with contextlib.nullcontext() if number == len(batches) else acc.no_sync(self.objective):
                sums = self.objective(pack(rows, acc.device))
                # DDP averages over processes; the sum over all of them is divided by the step's tokens instead.
                acc.backward(sums.loss * (acc.num_processes / max(supervised, 1)))
            window.sums += torch.stack([sums.loss.detach(), sums.correct]).to(window.sums)
        limit = self.args.max_grad_norm or math.inf
        grad_norm = float(acc.clip_grad_norm_(self.objective.parameters(), limit))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self.state.rows += len(step_rows.lengths)
        self.state.tokens += sum(step_rows.lengths)
        window.supervised += supervised
        window.tokens += sum(step_rows.lengths)
        window.steps += 1
        self.log.advance(self.state.step)
        return grad_norm

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
        if strategy == "epoch":
            return math.floor(self.feed.epoch(step)) > math.floor(self.feed.epoch(step - 1))
        return bool(step % getattr(self.args, f"{what}_steps") == 0)

    def _log_due(self) -> bool:
        step = self.state.step
        first = step == 1 and self.args.logging_first_step
        return first or step == self.feed.steps or step % self.args.logging_steps == 0

    def _log(self, window: Window, grad_norm: float) -> None:
        """Logs the means of a window of steps."""
        loss, correct = self.accelerator.reduce(window.sums, "sum").tolist()
        seconds = time.perf_counter() - window.began
        self.state.loss_sum += loss
        self.state.loss_tokens += window.supervised
        record = {
            "loss": loss / max(window.supervised, 1),
            "acc": correct / max(window.supervised, 1),
            "grad_norm": grad_norm,
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
        metrics = self.evaluate(self.state.step, stop)
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
        acc, state = self.accelerator, self.state
        state.elapsed = time.perf_counter() - self.began
        if evaluated and self._better(state.saved_best):
            state.saved_best, state.best_step = self._metric(), state.step
        random_states = checkpoint.random_states(acc)
        if acc.is_main_process:
            checkpoint.save(
                self.run,
                state,
                model=self.model,
                dtype=self.dtype,
                tokenizer=self.tokenizer,
                optimizer=self.optimizer,
                schedule=self.schedule,
                scaler=acc.scaler.state_dict() if acc.scaler is not None else None,
                random_states=random_states,
                weights_only=self.args.save_only_model,
            )
            if state.best_step == state.step:
                checkpoint.point_best(self.run, state.step)
            checkpoint.rotate(self.run, self.args.save_total_limit, keep=(state.best_step, state.step))
            self._draw()
        acc.wait_for_everyone()

    def _draw(self) -> None:
        if self.accelerator.is_main_process:
            plots.draw(self.run)

    def _resume(self, folder: Path) -> None:
        checkpoint.refuse_another_run(folder, self.state)
        self.state = checkpoint.load(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            scaler=self.accelerator.scaler,
            process=self.accelerator.process_index,
        )
        if self.state.step >= self.feed.steps:
            raise CheckpointError(
                f"--resume_from_checkpoint {folder}: it is at step {self.state.step}, and the run has "
                f"{self.feed.steps} steps: nothing is left to do.",
                "Set a higher --num_train_epochs or --max_steps.",
            )
        self.log.go_on_from(self.state.step)
        if not self.args.max_tokens_per_batch:
            self.budget = self.state.budget or self.budget

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
