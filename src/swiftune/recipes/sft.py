"""``swift sft`` and ``swift pt``: rows in, a run's folder with an adapter or a model out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.config import (
    PtArguments,
    SftArguments,
)
from swiftune.errors import (
    DivergedError,
    EvaluationError,
    Interrupted,
    MissingPackageError,
    OutOfMemoryError,
    OutputError,
)
from swiftune.recipes.checkpoint_args import find_adapter
from swiftune.recipes.opening import Opened, open_tokenizer
from swiftune.recipes.resuming import checkpoint_to_resume, folder_of_run, run_to_go_on_in
from swiftune.recipes.training_data import TrainingData, prepare
from swiftune.runtime import garbage, hardware, log_file, seeds
from swiftune.runtime.console import hushed, notice, say, warn

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator, PartialState

    from swiftune.tasks.task import Task
    from swiftune.train.loop import Trainer
    from swiftune.train.memory import MemoryPlan
    from swiftune.train.objective import SupervisedObjective


def pt(args: PtArguments) -> None:
    """Continued pre-training: every token of raw text is supervised."""
    _train(args, command="pt")


def sft(args: SftArguments) -> None:
    """Supervised fine-tuning: the assistant's turns are supervised."""
    _train(args, command="sft")


def _train(args: SftArguments, *, command: str) -> None:
    from accelerate import PartialState

    from swiftune.models import quantize
    from swiftune.train import run_folder

    if args.quant_method:
        quantize.check(args, hardware.device().type)
    # The process group is made here; what Accelerator is told about it later comes too late.
    group: dict[str, Any] = {"timeout": timedelta(seconds=args.ddp_timeout), "backend": args.ddp_backend}
    processes = PartialState(cpu=hardware.device().type == "cpu", **{k: v for k, v in group.items() if v is not None})
    resume_from = checkpoint_to_resume(args)
    opened = open_tokenizer(args, loss_scale=args.loss_scale, raw=command == "pt")
    dtype, said = hardware.choose_dtype(args.torch_dtype, opened.dtype, processes.device)
    if said:
        notice(said)
    _adapter(args, resume_from)  # a mistake is answered before hours of other work
    _trackers(args.report_to)
    if processes.is_main_process:
        run_folder.check(args.output_dir, "--output_dir")
        if args.logging_dir:
            run_folder.check(args.logging_dir, "--logging_dir")
        if own := run_to_go_on_in(args, resume_from):
            run_folder.refuse_alive(own)
    with processes.main_process_first():
        data = prepare(args, opened, processes.num_processes)
        tasks = _tasks(args)
    with folder_of_run(args, processes, resume_from) as run, log_file.inside(run):
        _train_in(run, args, opened, data, tasks, processes, dtype, resume_from, command=command)


def _train_in(
    run: Path,
    args: SftArguments,
    opened: Opened,
    data: TrainingData,
    tasks: list[tuple[Task, int]],
    processes: PartialState,
    dtype: torch.dtype,
    resume_from: Path | None,
    *,
    command: str,
) -> None:
    """All that happens once there is a folder for it."""
    from accelerate.state import AcceleratorState

    from swiftune.train import checkpoint_folder
    from swiftune.train.out_of_memory import ran_out

    if processes.is_main_process:
        say(f"Model: {opened.folder}", style="dim")
        data.show(opened.tokenizer)
        data.account(run)
    accelerator = _accelerator(args, dtype, run)
    try:
        trainer = _trainer(args, opened, data, tasks, accelerator, dtype, run, resume_from)
        garbage.look_as_usual()
        state = trainer.train()
    except (Interrupted, OutOfMemoryError, EvaluationError, DivergedError, OutputError) as stopped:
        step, last = (checkpoint_folder.listing(run) or [(-1, run)])[-1]
        if step == data.feed.steps:
            stopped.cure = f"That was the last step. {_to_talk_to(args, last)}"
        elif step >= 0 and not args.save_only_model:
            again = ["swift", command, "--config", str(run / "args.json"), "--resume_from_checkpoint", str(last)]
            stopped.cure = f"{stopped.cure} Go on with: {shlex.join(again)}".strip()
        raise
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemoryError(
            "Memory ran out before, or beside, the computation of a gradient.", "Train fewer parameters."
        ) from error
    finally:
        _end_tracking(accelerator)
        if processes.is_main_process and args.streaming:
            data.account(run)  # a stream is counted while it is read
        AcceleratorState._reset_state()  # else the next run of this process would have to have the same dtype
    if processes.is_main_process:
        _say_what_is_next(args, run, run / checkpoint_folder.name(state.step))


def _trainer(
    args: SftArguments,
    opened: Opened,
    data: TrainingData,
    tasks: list[tuple[Task, int]],
    accelerator: Accelerator,
    dtype: torch.dtype,
    run: Path,
    resume_from: Path | None,
) -> Trainer:
    """The model with what is trained of it, the optimizer, and the loop around them."""
    from swiftune.models import kernels
    from swiftune.recipes import run_record
    from swiftune.recipes.evaluation import Evaluator
    from swiftune.train import disk, memory, optim
    from swiftune.train.checkpoint import TrainerState
    from swiftune.train.lanes import Lanes
    from swiftune.train.loop import Trainer
    from swiftune.train.objective import SupervisedObjective
    from swiftune.train.plan import Layout, pair_work

    seeds.seed_everything(args.seed, deterministic=args.full_determinism)
    hardware.keep_freed_memory()
    model = _model(args, opened, accelerator.device, dtype, resume_from)
    objective = SupervisedObjective(model, neftune_alpha=args.neftune_noise_alpha)
    plan = _plan_memory(args, objective, data, accelerator, dtype)
    needed = hardware.resident_memory() + plan.activations + memory.training_bytes(model, args.optim, 1)
    layout = Layout(plan.budget, accelerator.num_processes, pair_work(model.config), plan.lanes, share=objective.shares)
    lanes = Lanes(plan.lanes)
    if accelerator.is_main_process:
        run_record.write(run, args, data, accelerator, budget=layout.budget)
        disk.say_what_is_needed(run, args, model, dtype, data.feed)
    if _has_kernels("torch_compile", args, accelerator.device):
        kernels.compile_layers(model)
    optimizer = optim.build_optimizer(model, args)
    schedule = optim.build_schedule(optimizer, args, steps=data.feed.steps)
    with hushed("`broadcast_buffers` is deprecated"):  # the name that accelerate knows, and that torch 2.10 knows too
        prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    place = TrainerState(
        rows_per_step=data.rows_per_step,
        processes=accelerator.num_processes,
        data=data.key,
        budget=layout.budget,
        lanes=layout.lanes,
    )
    seeds.seed_everything(args.seed, process=accelerator.process_index)
    return Trainer(
        args,
        objective=prepared,
        model=model,
        feed=data.feed,
        optimizer=prepared_optimizer,
        schedule=schedule,
        accelerator=accelerator,
        tokenizer=opened.tokenizer,
        layout=layout,
        lanes=lanes,
        dtype=dtype,
        run=run,
        state=place,
        memory=needed,
        evaluate=Evaluator(args, opened, data, objective, prepared, layout, lanes, accelerator, run, tasks)
        if data.val or tasks
        else None,
        resume_from=None if args.resume_only_model else resume_from,
    )


def _tasks(args: SftArguments) -> list[tuple[Task, int]]:
    """The tasks that are asked at evaluations."""
    if not args.eval_dataset or args.eval_strategy == "no":
        return []
    from swiftune.recipes.evaluate.questions import tasks_of

    return tasks_of(args, args, aside=Path(args.output_dir) / "eval_set_aside.jsonl")


def _model(
    args: SftArguments, opened: Opened, device: torch.device, dtype: torch.dtype, resume_from: Path | None
) -> Any:
    import torch

    from swiftune import tuners
    from swiftune.models import kernels, quantize
    from swiftune.models.load import load_model

    full = args.train_type == "full"
    # Full tuning keeps its weights in float32 and computes in dtype: in 16 bits small updates would be rounded away.
    # A checkpoint that computes in 16 bits has its float32 weights in a file of their own, to be put onto the base.
    rounded = resume_from is not None and (resume_from / "weights.safetensors").exists() and not args.resume_only_model
    model = load_model(
        resume_from if full and resume_from and not rounded else opened.folder,
        dtype=torch.float32 if full else dtype,
        attn_impl=args.attn_impl,
        device=device,
        trust_remote_code=args.trust_remote_code,
        quantization=quantize.while_loading(args, dtype),
    )
    quantize.keep_differentiable(model)
    if _has_kernels("use_liger_kernel", args, device):
        kernels.use_liger(model)
    if full:
        tuners.choose_parameters(model, args)
        return model
    adapter = _adapter(args, resume_from)
    tuned = tuners.load_adapter(model, adapter, trainable=True) if adapter else tuners.attach_lora(model, args)
    tuners.speed_up(tuned)
    return tuned


def _has_kernels(flag: str, args: SftArguments, device: torch.device) -> bool:
    """Whether kernels are asked for, and there is a GPU for them."""
    if getattr(args, flag) and device.type == "cpu":
        warn(f"--{flag} has no effect on a CPU.")
    return bool(getattr(args, flag)) and device.type != "cpu"


def _adapter(args: SftArguments, resume_from: Path | None) -> Path | None:
    """The adapter that training goes on with, if any.

    Raises:
        AdapterError: it is no whole adapter.
    """
    from swiftune.tuners.adapter import read_config

    adapter = resume_from or (find_adapter(args.adapters[0], args) if args.adapters else None)
    if adapter is None or args.train_type == "full":
        return None
    read_config(adapter)
    return adapter


def _plan_memory(
    args: SftArguments,
    objective: SupervisedObjective,
    data: TrainingData,
    accelerator: Accelerator,
    dtype: torch.dtype,
) -> MemoryPlan:
    """Decides how many tokens a micro-batch has, and says in one line what the run will take."""
    from swiftune import tuners
    from swiftune.train import lanes, memory

    model, processes = objective.model, accelerator.num_processes
    trained, total = tuners.count_parameters(model)
    activations = memory.measure_activations(objective, accelerator.autocast, dtype.itemsize, data.longest)
    plan = memory.plan_memory(
        activations,
        free=_room(accelerator) - memory.training_bytes(model, args.optim, processes),
        device=accelerator.device.type,
        longest=data.longest,
        asked=args.max_tokens_per_batch,
        checkpointing=args.gradient_checkpointing,
        lanes=lanes.fitting(model, accelerator.device, processes),
    )
    memory.compute_again(model, plan.again)
    at_once = f", {plan.lanes} at once" if plan.lanes > 1 else ""
    again = f", activations of {plan.again} of {activations.layers} layers computed again" if plan.again else ""
    if accelerator.is_main_process:
        say(
            f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f}%), in "
            f"{str(dtype).removeprefix('torch.')}{_held(args)} on {processes} x {accelerator.device.type}, "
            f"{data.feed.steps} steps of {data.rows_per_step} rows in micro-batches of up to {plan.budget} tokens"
            f"{at_once}{again} (at most about {plan.activations / 2**30:.1f} GiB of activations)."
        )
    return plan


def _held(args: SftArguments) -> str:
    return f" over weights in {args.bits} bits" if args.quant_method else ""


def _room(accelerator: Accelerator) -> int:
    """Bytes that this process may fill: on a CPU all processes of a machine share its memory."""
    free = hardware.free_memory(accelerator.device)
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if accelerator.device.type == "cpu" else free


def _accelerator(args: SftArguments, dtype: torch.dtype, run: Path) -> Accelerator:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.tracking import TensorBoardTracker

    trackers: list[Any] = _trackers(args.report_to)
    if "tensorboard" in trackers:
        board = Path(args.logging_dir) if args.logging_dir else run / "runs"
        trackers[trackers.index("tensorboard")] = TensorBoardTracker(board.name, board.parent)
    accelerator = Accelerator(
        cpu=hardware.device().type == "cpu",
        mixed_precision={"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(dtype), "no"),
        log_with=trackers or None,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )
    accelerator.init_trackers(args.run_name or run.name)
    return accelerator


def _end_tracking(accelerator: Accelerator) -> None:
    try:
        accelerator.end_training()
    except OSError as error:  # a full disk
        warn(f"The tracker's files are not complete: {error.strerror or error}.")


def _trackers(report_to: Sequence[str]) -> list[str]:
    from importlib.util import find_spec

    known = ("tensorboard", "wandb", "swanlab", "trackio")
    if "all" in report_to:
        return [name for name in known if find_spec(name)]
    for name in report_to:
        if name != "none" and not find_spec(name):
            raise MissingPackageError(f"--report_to {name} needs a package.", f"Install it: pip install {name}")
    return [name for name in known if name in report_to]


def _say_what_is_next(args: SftArguments, run: Path, last: Path) -> None:
    say(f"Done. The run is in {run}")
    if last.exists():
        say(_to_talk_to(args, last))


def _to_talk_to(args: SftArguments, last: Path) -> str:
    flag = "--adapters" if args.train_type == "lora" else "--model"
    return f"Talk to it: swift infer {flag} {last}"
