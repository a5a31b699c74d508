"""The arguments of ``swift sweep`` that are its own; the others are those of the command that it runs."""

from __future__ import annotations

from swiftune.config.declare import Arguments, unset
from swiftune.config.values import Count, Folder, Json, Name, Names, Seed


class SweepArguments(Arguments):
    """Sweep: a flag of the training that has several values is swept; all its other flags are given as always."""

    zip: Names = []
    """Flags whose values are walked together, first with first, second with second; the others make a grid with them:
    `--lora_rank 4 8 --lora_alpha 16 32 --zip lora_rank lora_alpha` is two runs."""
    sweep: Json | None = unset("none")
    """Values of any flag, also of one that takes a list: '{"dataset": ["a.jsonl", ["a.jsonl", "b.jsonl"]]}'."""
    output_dir: Folder = "output/sweep"
    """The sweep's folder; each run has a folder in it. The same sweep in the same folder goes on where it was ended."""
    sweep_metric: Name | None = unset("eval_loss if there are rows to evaluate on, else train_loss")
    """Figure by which the best run is chosen, such as `eval_acc`; the least, where it is a loss, a time or a size."""
    sweep_jobs: Count = 1
    """Runs at once. They share the cores, or the devices that CUDA_VISIBLE_DEVICES lists."""
    sweep_trials: Count | None = unset("every combination once")
    """Search instead, with so many runs: each takes the values that the ones before make promising. A number may then
    be a range, `--learning_rate 1e-5..1e-3`. Needs `optuna`."""
    sweep_seed: Seed = 42
    """Seed of that search."""
