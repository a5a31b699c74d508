"""Arguments of training, by theme. pydantic orders fields from the last base to the first, hence the order of bases."""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BeforeValidator

from swiftune.config.declare import Arguments, follows, unset
from swiftune.config.evaluating import task_label
from swiftune.config.values import (
    Count,
    CountOrZero,
    Epochs,
    Folder,
    Json,
    Name,
    Of,
    Positive,
    PositiveOrZero,
    Regex,
    Rows,
    RowsOrPercent,
    Seconds,
    Share,
    ShareBelowOne,
    Shares,
    Steps,
    StepsOrZero,
    Tokens,
    Words,
    listed,
)


class LengthArguments(Arguments):
    """Length: what happens to long rows, and which tokens are learned."""

    max_length: Tokens = 2048
    """Longest row."""
    truncation_strategy: Literal["delete", "left", "right"] = "delete"
    """What is done with a longer row: set it aside and say so, or cut off its left or right end."""
    loss_scale: Literal["default", "last_round", "all"] = "default"
    """Which tokens are learned: every answer, the last answer only, or all tokens."""


class FaultArguments(Arguments):
    """Faults: rows that cannot be used are set aside and listed, with the reason."""

    max_bad_rows: RowsOrPercent = "5%"
    """How many rows may be: a number of rows, or a percentage of them. Where there are more, nothing is trained."""


class FilterArguments(Arguments):
    """Filters: training rows left out although they could be used. Each is counted, and listed with the reason."""

    filter_duplicates: bool | Literal["near"] = False
    """Leave out training rows that are copies of an earlier one, or of a row for evaluation; `near`: also those that
    have four fifths of their text in common with one (MinHash)."""
    min_response_tokens: CountOrZero = 0
    """Leave out training rows with fewer learned tokens, the end of the answer among them."""
    balance: Literal["none", "channel", "label"] = "none"
    """Let every class of the rows' column `channel` or `label` have the same number of training rows: rows of small
    classes are repeated, of large ones a sample is taken (--data_seed)."""


class OrderArguments(Arguments):
    """Order: in which order rows come."""

    train_dataloader_shuffle: bool = True
    """Shuffle the training rows anew in every epoch."""
    streaming: bool = False
    """Read rows while training instead of before it, for data larger than the disk. Needs --max_steps."""
    shuffle_buffer_size: Rows = 1000
    """With --streaming: rows among which the next one is drawn."""
    interleave_prob: Shares = []
    """With --streaming: how often each data set is drawn from, one number each. None given: one set after the other."""
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """With --interleave_prob: an epoch ends with the first data set that ends, or goes on until all have."""


class MethodArguments(Arguments):
    """Method: what is trained."""

    train_type: Literal["lora", "full"] = "lora"
    """`lora`: small matrices beside the frozen weights, saved as an adapter. `full`: the weights themselves."""


class LoraArguments(Arguments):
    """LoRA: with --train_type lora."""

    lora_rank: Count = 8
    """Rank of the two matrices of a layer."""
    lora_alpha: Count = 32
    """Their product is multiplied by alpha / rank."""
    lora_dropout: ShareBelowOne = 0.05
    """Share of the inputs of the matrices that is dropped."""
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained too."""
    target_modules: Words = ["all-linear"]
    """Layers that get matrices, by the end of their names; `all-linear`: every linear layer but the output head."""
    target_regex: Regex | None = unset("--target_modules decides")
    """Layers that get matrices, by a regular expression for the whole name; replaces --target_modules."""
    modules_to_save: Words = []
    """Further modules that are trained whole and saved with the adapter, such as `embed_tokens lm_head`."""
    use_dora: bool = False
    """DoRA: learn the length of each weight column apart from its direction (arXiv:2402.09353)."""
    use_rslora: bool = False
    """rsLoRA: scale by alpha / sqrt(rank), for high ranks (arXiv:2312.03732)."""
    lorap_lr_ratio: Positive | None = unset("the same learning rate for both matrices")
    """LoRA+: learning rate of matrix B over that of A, usually 10 to 16 (arXiv:2402.12354)."""
    init_weights: bool | Literal["gaussian"] = True
    """How the matrices begin: `true` is Kaiming for A and zero for B."""


class FullArguments(Arguments):
    """Full: with --train_type full; what is named trainable is trained even if it is also frozen."""

    freeze_parameters: Words = []
    """Parameters that stay as they are, by the beginning of their names."""
    freeze_parameters_regex: Regex | None = unset("none")
    """Parameters that stay as they are, by a regular expression found in their names."""
    freeze_parameters_ratio: Share = 0.0
    """Share of all parameters that stays as it is, counted from the input side."""
    trainable_parameters: Words = []
    """Parameters that are trained in any case, by the beginning of their names."""
    trainable_parameters_regex: Regex | None = unset("none")
    """Parameters that are trained in any case, by a regular expression found in their names."""


class GaloreArguments(Arguments):
    """GaLore: full training with gradients projected to a low rank (arXiv:2403.03507)."""

    use_galore: bool = False
    """Use it. Needs --train_type full."""
    galore_target_modules: Words = []
    """Layers it is used for, by a part of their names; none given: every linear layer but the output head."""
    galore_rank: Count = 128
    """Rank to which gradients are projected."""
    galore_update_proj_gap: Steps = 50
    """How often the projection is computed anew."""
    galore_scale: Positive = 1.0
    """Multiplies the projected update."""
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std"
    """Side of the matrix that is projected."""


class TunerArguments(GaloreArguments, FullArguments, LoraArguments, MethodArguments):
    """What is trained."""


def _rows_of_a_step(values: dict[str, Any]) -> int:
    rows: int = values.get("per_device_train_batch_size", 1) * int(os.environ.get("WORLD_SIZE") or 1)
    return math.ceil(16 / rows)


class StepArguments(Arguments):
    """Steps: how many rows are in an optimizer step, and how many steps there are."""

    per_device_train_batch_size: Rows = 1
    """Rows of a device's batch. Times --gradient_accumulation_steps, times devices: the rows of an optimizer step. How
    they are laid out in memory is --max_tokens_per_batch's affair."""
    gradient_accumulation_steps: Count = follows("as many as make 16 rows a step", _rows_of_a_step)
    """Batches that make one optimizer step."""
    num_train_epochs: Epochs = 3.0
    """Passes over the data."""
    max_steps: Annotated[int, Ge(-1), Of("steps")] = -1
    """Stop after this many optimizer steps, whatever --num_train_epochs says; -1 or 0: no such limit."""


class OptimizerArguments(Arguments):
    """Optimizer: how weights follow gradients."""

    learning_rate: PositiveOrZero = follows(
        "1e-4; 1e-5 with --train_type full", lambda values: 1e-5 if values.get("train_type") == "full" else 1e-4
    )
    """Highest learning rate."""
    lr_scheduler_type: Literal[
        "cosine",
        "linear",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "cosine"
    """How the learning rate falls after the warm-up."""
    lr_scheduler_kwargs: Json | None = unset("none")
    """Further settings of the schedule, such as '{"min_lr": 1e-6}' for cosine_with_min_lr."""
    warmup_ratio: Share = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    warmup_steps: StepsOrZero = 0
    """Steps over which it rises; above 0 it replaces --warmup_ratio."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"] = "adamw_torch"
    """Optimizer; `adamw_torch` and `adamw_torch_fused` are the same: AdamW in one kernel."""
    weight_decay: PositiveOrZero = 0.1
    """Decay of matrices; biases and norms do not decay."""
    adam_beta1: ShareBelowOne = 0.9
    """How long AdamW remembers gradients."""
    adam_beta2: ShareBelowOne = 0.95
    """How long AdamW remembers squared gradients."""
    adam_epsilon: Positive = 1e-8
    """Added to AdamW's divisor."""
    max_grad_norm: PositiveOrZero = 1.0
    """Gradients longer than this are shortened to it; 0: never."""
    max_bad_steps: Steps = 10
    """End the run after so many steps in a row whose loss or gradient is not finite. Such a step is not applied, and
    its rows are listed in bad_steps.jsonl."""
    neftune_noise_alpha: PositiveOrZero = 0.0
    """NEFTune: noise on the embeddings while training, usually 5 to 15 (arXiv:2310.05914); 0: none."""


class HardwareArguments(Arguments):
    """Hardware: memory, processes, devices."""

    max_tokens_per_batch: Tokens | None = unset("what fits the memory")
    """Rows are packed without padding into forward passes of at most this size (one longer row goes alone). It changes
    memory and speed, not the result."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third slower.
    `auto`: only where the memory asks for it, in as few layers as it takes."""
    use_liger_kernel: bool = False
    """On a GPU: Liger's kernels for norms, rotary embedding and the feed-forward's activation, where it knows the
    model (needs `liger-kernel`). Head and loss are always computed together."""
    torch_compile: bool = False
    """On a GPU: compile the decoder layers with `torch.compile`."""
    full_determinism: bool = False
    """Use deterministic algorithms only, at some cost in speed."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None = unset("nccl on GPUs, else gloo")
    """How processes talk to each other."""
    ddp_timeout: Seconds = 18_000_000
    """How long a process waits for the others."""


class TrainArguments(HardwareArguments, OptimizerArguments, StepArguments):
    """How it is trained."""


Trackers = Annotated[
    list[Literal["tensorboard", "wandb", "swanlab", "trackio", "all", "none"]], BeforeValidator(listed)
]


class OutputArguments(Arguments):
    """Output: what a run leaves, and what it says on the way."""

    output_dir: Folder = "output"
    """Where runs are put."""
    add_version: bool = True
    """Make a new folder v0-20261122-101500 in it for each run; `false` writes into --output_dir itself."""
    save_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When checkpoints are written; the last step is saved with every one but `no`."""
    save_steps: Steps = 500
    """With --save_strategy steps: steps between checkpoints."""
    save_total_limit: Annotated[int, Gt(0), Of("checkpoints")] | None = unset("all are kept")
    """Checkpoints kept: the latest ones, the best among them."""
    save_only_model: bool = False
    """Write checkpoints without the optimizer and random states: smaller, but training cannot go on from them."""
    resume_from_checkpoint: Folder | None = unset("a fresh start")
    """Checkpoint from which a run goes on, with its optimizer, its place in the data and its random states."""
    resume_anyway: bool = False
    """Go on with --resume_from_checkpoint although arguments that change the result are others than they were."""
    resume_only_model: bool = False
    """Take only the weights from --resume_from_checkpoint."""
    logging_steps: Steps = 5
    """Steps between lines of the log."""
    logging_first_step: bool = True
    """Log the first step too."""
    logging_dir: Folder | None = unset("runs/ in the run's folder")
    """Where TensorBoard's files go."""
    report_to: Trackers = ["tensorboard"]
    """Trackers that get the figures besides logging.jsonl."""
    run_name: Name | None = unset("the name of the run's folder")
    """Name of the run in the trackers."""


def _has_evaluation_rows(values: dict[str, Any]) -> bool:
    return bool(values.get("val_dataset") or values.get("split_dataset_ratio") or values.get("eval_dataset"))


def _best(values: dict[str, Any]) -> str:
    if values.get("predict_with_generate"):
        return "rouge-l"
    only_tasks = not (values.get("val_dataset") or values.get("split_dataset_ratio"))
    tasks = values.get("eval_dataset")
    return task_label(tasks[0]) if tasks and only_tasks else "loss"


BestMetric = Annotated[str, BeforeValidator(lambda name: str(name).removeprefix("eval_")), Of("figure")]


class EvaluationArguments(Arguments):
    """Evaluation: on the rows of --val_dataset or --split_dataset_ratio, and by the tasks of --eval_dataset, while
    training."""

    eval_strategy: Literal["steps", "epoch", "no"] = follows(
        "as --save_strategy, if there are rows to evaluate on",
        lambda values: values.get("save_strategy", "steps") if _has_evaluation_rows(values) else "no",
    )
    """When."""
    eval_steps: Steps = follows("as --save_steps", lambda values: values.get("save_steps", 500))
    """With --eval_strategy steps: steps between evaluations."""
    eval_on_start: bool = False
    """Evaluate before the first step too."""
    per_device_eval_batch_size: Rows = 1
    """Rows whose answers are written at once with --predict_with_generate; the loss is computed on packed rows."""
    predict_with_generate: bool = False
    """Let the model write the answers, and score them with ROUGE and BLEU."""
    metric_for_best_model: BestMetric = follows("loss; rouge-l with --predict_with_generate; the only task", _best)
    """Figure by which the best checkpoint is chosen: `loss`, `acc`, a task of --eval_dataset, or with
    --predict_with_generate `rouge-1`, `rouge-2`, `rouge-l` or `bleu-4`."""
    greater_is_better: bool = follows(
        "false for loss, else true", lambda values: values.get("metric_for_best_model", "loss") != "loss"
    )
    """Whether more of it is better."""
    early_stop_interval: Annotated[int, Gt(0), Of("evaluations")] | None = unset("never")
    """Stop after this many evaluations without a better figure."""
