"""``swift sft`` and ``swift pt``: rows in, a run's folder with an adapter or a model out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.config import (
    LengthArguments,
    PtArguments,
    SftArguments,
    TrainArguments,
    TunerArguments,
    load,
    save,
)
from swiftune.errors import Interrupted, MissingPackageError, OutOfMemoryError
from swiftune.recipes.checkpoint_args import find_adapter
from swiftune.recipes.opening import Opened, open_tokenizer
from swiftune.recipes.training_data import TrainingData, prepare
from swiftune.runtime import garbage, hardware, seeds
from swiftune.runtime.console import err, hushed, notice, warn

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator, PartialState

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
    from accelerate.state import AcceleratorState

    from swiftune.train import checkpoint, run_folder
    from swiftune.train.out_of_memory import ran_out

    # The process group is made here; what Accelerator is told about it later comes too late.
    group: dict[str, Any] = {"timeout": timedelta(seconds=args.ddp_timeout), "backend": args.ddp_backend}
    processes = PartialState(cpu=hardware.device().type == "cpu", **{k: v for k, v in group.items() if v is not None})
    resume_from = _checkpoint_to_resume(args)
    opened = open_tokenizer(args, loss_scale=args.loss_scale, raw=command == "pt")
    dtype, said = hardware.choose_dtype(args.torch_dtype, opened.dtype, processes.device)
    if said:
        notice(said)
    _adapter(args, resume_from)  # a mistake is answered before hours of other work
    if processes.is_main_process:
        run_folder.check(args.output_dir, "--output_dir")
        if args.logging_dir:
            run_folder.check(args.logging_dir, "--logging_dir")
    with processes.main_process_first():
        data = prepare(args, opened, processes.num_processes)
    run = _run_folder(args, processes, resume_from)
    if processes.is_main_process:
        err().print(f"Model: {opened.folder}", style="dim", markup=False)
        data.show(opened.tokenizer)
        data.account(run)
    accelerator = _accelerator(args, dtype, run)
    try:
        trainer = _trainer(args, opened, data, accelerator, dtype, run, resume_from)
        garbage.look_as_usual()
        state = trainer.train()
    except (Interrupted, OutOfMemoryError) as stopped:
        last = run / checkpoint.name(trainer.state.step)
        if last.exists() and not args.save_only_model:
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
        accelerator.end_training()
        if processes.is_main_process:
            if args.streaming:
                data.account(run)  # a stream is counted while it is read
            run_folder.discard_unused(run)
        AcceleratorState._reset_state()  # else the next run of this process would have to have the same dtype
    if processes.is_main_process:
        _say_what_is_next(args, run, run / checkpoint.name(state.step))


def _trainer(
    args: SftArguments,
    opened: Opened,
    data: TrainingData,
    accelerator: Accelerator,
    dtype: torch.dtype,
    run: Path,
    resume_from: Path | None,
) -> Trainer:
    """The model with what is trained of it, the optimizer, and the loop around them."""
    from swiftune.models import kernels
    from swiftune.recipes import run_record
    from swiftune.recipes.evaluation import Evaluator
    from swiftune.train import optim
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
    layout = Layout(plan.budget, accelerator.num_processes, pair_work(model.config), plan.lanes)
    lanes = Lanes(plan.lanes)
    if accelerator.is_main_process:
        run_record.write(run, args, data, accelerator, budget=layout.budget)
    if _has_kernels("torch_compile", args, accelerator.device):
        kernels.compile_layers(model)
    optimizer = optim.build_optimizer(model, args)
    schedule = optim.build_schedule(optimizer, args, steps=data.feed.steps)
    with hushed("`broadcast_buffers` is deprecated"):  # the name that accelerate knows, and that torch 2.10 knows too
        prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    place = TrainerState(
        rows_per_step=data.rows_per_step, processes=accelerator.num_processes, data=data.key, budget=layout.budget
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
        evaluate=Evaluator(args, opened, data, objective, prepared, layout, lanes, accelerator, run)
        if data.val
        else None,
        resume_from=None if args.resume_only_model else resume_from,
    )


def _model(
    args: SftArguments, opened: Opened, device: torch.device, dtype: torch.dtype, resume_from: Path | None
) -> Any:
    import torch

    from swiftune import tuners
    from swiftune.models import kernels
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
    )
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
    from swiftune.train import lanes, memory

    model, processes = objective.model, accelerator.num_processes
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
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
        err().print(
            f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f}%), in "
            f"{str(dtype).removeprefix('torch.')} on {processes} x {accelerator.device.type}, "
            f"{data.feed.steps} steps of {data.rows_per_step} rows in micro-batches of up to {plan.budget} tokens"
            f"{at_once}{again} (at most about {plan.activations / 2**30:.1f} GiB of activations).",
            markup=False,
        )
    return plan


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


def _trackers(report_to: Sequence[str]) -> list[str]:
    from importlib.util import find_spec

    known = ("tensorboard", "wandb", "swanlab", "trackio")
    if "all" in report_to:
        return [name for name in known if find_spec(name)]
    for name in report_to:
        if name != "none" and not find_spec(name):
            raise MissingPackageError(f"--report_to {name} needs a package.", f"Install it: pip install {name}")
    return [name for name in known if name in report_to]


def _checkpoint_to_resume(args: SftArguments) -> Path | None:
    from swiftune.train import checkpoint

    asked = args.resume_from_checkpoint
    if asked is None:
        return None
    folder = checkpoint.newest(Path(args.output_dir)) if asked == "true" else Path(asked)
    if checkpoint.listing(folder):  # a run's folder
        folder = checkpoint.newest(folder)
    if not args.resume_only_model:
        checkpoint.read_state(folder)
        _say_what_changed(args, folder)
    return folder.resolve()


def _say_what_changed(args: SftArguments, folder: Path) -> None:
    """Names the arguments of training that are others than those of the run that is gone on with."""
    then = load(folder / "args.json", SftArguments)
    names = [name for group in (TrainArguments, TunerArguments, LengthArguments) for name in group.model_fields]
    changed = [f"--{name} ({getattr(then, name)} then)" for name in names if getattr(then, name) != getattr(args, name)]
    if changed:
        warn(f"Since {folder} was written these have changed: {', '.join(changed)}.")


def _run_folder(args: SftArguments, processes: PartialState, resume_from: Path | None) -> Path:
    """The run's folder, made by the main process, with the resolved arguments in it. A resumed run keeps its own."""
    from accelerate.utils import broadcast_object_list

    from swiftune.train import run_folder

    made: list[Any] = [None]
    if processes.is_main_process:
        output = Path(args.output_dir)
        own = None if args.resume_only_model else _run_to_go_on_in(output, resume_from)
        made[0] = own or run_folder.create(output, add_version=args.add_version)
        path = Path(args.model or "")
        fresh: dict[str, Any] = {"resume_from_checkpoint": None, "resume_only_model": False}
        resolved = args.model_copy(
            update=fresh | ({"model": str(path.resolve())} if args.model and path.exists() else {})
        )
        save(resolved, made[0] / "args.json")
    if processes.num_processes > 1:
        broadcast_object_list(made)
    return Path(made[0])


def _run_to_go_on_in(output: Path, resume_from: Path | None) -> Path | None:
    """The folder of the interrupted run, if it is in ``output`` and nothing in it is newer than the checkpoint."""
    from swiftune.train import checkpoint

    if resume_from is None or output.resolve() not in (resume_from.parent, resume_from.parent.parent):
        return None
    return resume_from.parent if checkpoint.listing(resume_from.parent)[-1][1] == resume_from else None


def _say_what_is_next(args: SftArguments, run: Path, last: Path) -> None:
    err().print(f"Done. The run is in {run}", markup=False)
    if last.exists():
        flag = "--adapters" if args.train_type == "lora" else "--model"
        err().print(f"Talk to it: swift infer {flag} {last}", markup=False)
