"""Checkpoints: a folder that serves (adapter or whole model), plus all that training needs to go on from it.

checkpoint-50/
  adapter_config.json, adapter_model.safetensors    LoRA: PEFT's own format
  config.json, model.safetensors, tokenizer ...     full tuning: a complete model folder
  args.json                                         the run's resolved arguments
  trainer_state.json                                step, best metric, totals
  optimizer.safetensors, processes.safetensors      and weights.safetensors (full tuning that computes in 16 bits)
  complete.json                                     see checkpoint_folder: a checkpoint is whole, or it is none
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from swiftune.errors import CheckpointError, OutputError
from swiftune.runtime import hardware
from swiftune.train import checkpoint_folder
from swiftune.train.optim import load_optimizer_state, optimizer_state
from swiftune.train.tree_file import load_tree, save_tree

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

STATE = "trainer_state.json"


@dataclass
class TrainerState:
    """Where a run is. All that the loop keeps from step to step besides tensors."""

    step: int = 0
    rows_per_step: int = 0
    processes: int = 1
    data: str = ""
    """Names the training rows by content; empty for a stream."""
    budget: int = 0
    """Tokens in a micro-batch: dropout is drawn along it."""
    lanes: int = 1
    """Micro-batches computed at once: each draws for itself."""
    best_metric: float | None = None
    saved_best: float | None = None
    """The best metric of a checkpoint that was evaluated when it was saved, and its step."""
    best_step: int | None = None
    stale_evaluations: int = 0
    """Evaluations in a row that were no better than the best."""
    bad_steps: int = 0
    """Steps in a row, up to the last one, that were not applied: a loss or gradient was not finite."""
    tokens: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    elapsed: float = 0.0
    """Seconds of training so far, those before a resume included."""
    since_logged: float = 0.0
    """Seconds of them since the last logged step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last evaluation's."""
    feed: dict[str, Any] = field(default_factory=dict)
    """The place in the data, where the step alone does not tell it."""


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint is written from, as it was at one moment."""

    state: dict[str, Any]
    model: Any
    dtype: torch.dtype
    weights: dict[str, torch.Tensor]
    """The model's, by name; those that are not trained are the model's own tensors."""
    trees: dict[str, Any]
    """What only training needs: file names and contents."""
    copied: bool
    """Whether all of it is copied: else it must be written before training goes on."""


def snapshot(
    state: TrainerState,
    *,
    model: torch.nn.Module,
    dtype: torch.dtype,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: dict[str, Any] | None,
    processes: list[dict[str, Any]],
    weights_only: bool = False,
) -> Snapshot:
    """Copies what training changes, so that it can go on while the copy is written.

    Args:
        dtype: in which a fully tuned model's weights are saved.
        processes: what each process has of its own (``of_all_processes``).
        weights_only: leave out what only training needs.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trees: dict[str, Any] = {}
    if not weights_only:
        trees = {
            "optimizer": {
                "optimizer": optimizer_state(optimizer),
                "schedule": _plain(schedule.state_dict()),
                "scaler": scaler,
            },
            "processes": processes,
        }
        if not _is_adapter(model) and dtype != torch.float32:
            trees["weights"] = trained
    size = sum(p.nbytes for p in trained.values())
    # A copy may take five times what is trained. Where there is no room for it, the caller waits for the writing.
    room = hardware.free_memory(torch.device("cpu")) > 10 * size
    weights = _weights(model, dtype, {p.data_ptr() for p in trained.values()} if room else set())
    return Snapshot(asdict(state), model, dtype, weights, _copied(trees) if room else trees, room)


def write(run: Path, taken: Snapshot, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Writes ``checkpoint-<step>`` into the run's folder; called in the main process.

    Raises:
        OutputError: it could not be written; what there was before is as it was.
    """
    final = run / checkpoint_folder.name(taken.state["step"])
    try:
        with checkpoint_folder.new(run, taken.state["step"]) as folder:
            _save_model(taken, tokenizer, folder)
            shutil.copy(run / "args.json", folder / "args.json")
            for tree, content in taken.trees.items():
                save_tree(content, folder / f"{tree}.safetensors")
            (folder / STATE).write_text(json.dumps(taken.state, indent=1), encoding="utf-8")
    except Exception as error:
        if not _is_of_the_disk(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"The checkpoint {final} could not be written: {reason}.", "Is the disk full?") from error
    return final


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a file could not be written. Libraries in Rust (tokenizers) raise a bare Exception for that."""
    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


def load(
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: Any,
    process: int,
    settings: bool = True,
) -> tuple[TrainerState, dict[str, Any]]:
    """Puts everything back as it was when ``folder`` was written; adapters and models are loaded by their rooms.

    Args:
        process: number of this process.
        settings: learning rate, decay and the like, too; False keeps those that the optimizer has.

    Returns:
        Where the run is, and what this process had of its own besides the random states.
    """
    raw = read_state(folder)
    try:
        saved = load_tree(folder / "optimizer.safetensors")
        load_optimizer_state(optimizer, saved["optimizer"], settings=settings)
        schedule.load_state_dict(saved["schedule"] if settings else saved["schedule"] | _settings(schedule))
        if scaler is not None and saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        if (folder / "weights.safetensors").exists():
            model.load_state_dict(load_tree(folder / "weights.safetensors"), strict=False)
        own = load_tree(folder / "processes.safetensors")[process]
        set_random_state(own.pop("random"))
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be resumed from: {error}.", "Take an earlier checkpoint.") from error
    return as_state(raw), own


def refuse_another_run(folder: Path, now: TrainerState) -> None:
    """Raises CheckpointError where a step of the run that made ``folder`` had other rows than one has now."""
    then = as_state(read_state(folder))
    differences = [
        f"{what} ({before} then, {after} now)" if before is not None else what
        for what, before, after, same in (
            ("the rows of a step", then.rows_per_step, now.rows_per_step, then.rows_per_step == now.rows_per_step),
            ("the number of processes", then.processes, now.processes, then.processes == now.processes),
            ("the training rows", None, None, then.data == now.data),
        )
        if not same
    ]
    if differences:
        raise CheckpointError(
            f"--resume_from_checkpoint {folder}: that run differs in {' and '.join(differences)}.",
            "Set them as they were, or take its weights only: --resume_only_model true.",
        )


def as_state(raw: dict[str, Any]) -> TrainerState:
    """What ``read_state`` gave, without what another version may have written."""
    known = {f.name for f in fields(TrainerState)}
    return TrainerState(**{k: v for k, v in raw.items() if k in known})


def read_state(folder: Path) -> dict[str, Any]:
    """``trainer_state.json`` of a checkpoint that has been verified.

    Raises:
        CheckpointError: it lacks what training needs to go on.
    """
    flag = f"--resume_from_checkpoint {folder}"
    if not (folder / "optimizer.safetensors").exists():
        raise CheckpointError(
            f"{flag}: it was saved with --save_only_model, and has nothing but the weights.",
            "Take them, and begin a new run: --resume_only_model true.",
        )
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        state["step"] + 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{flag}: {STATE} is damaged ({error}).", "Take an earlier checkpoint.") from error
    return state  # type: ignore[no-any-return]


def _is_adapter(model: torch.nn.Module) -> bool:
    return hasattr(model, "peft_config")


def _weights(model: torch.nn.Module, dtype: torch.dtype, copied: Collection[int]) -> dict[str, torch.Tensor]:
    """The model's state: an adapter's as it is, a whole model's in ``dtype``; a copy of the tensors at ``copied``."""
    made: dict[int, torch.Tensor] = {}  # by address: tied weights stay one tensor, which is saved once
    weights = {}
    for key, value in model.state_dict().items():
        address = value.data_ptr()
        if address not in made:
            wanted = value.dtype if _is_adapter(model) else dtype
            made[address] = value.to("cpu", wanted, copy=True) if address in copied else value.to(wanted)
        weights[key] = made[address]
    return weights


def _copied(node: Any) -> Any:
    """A tree with its tensors copied into main memory."""
    if isinstance(node, torch.Tensor):
        return node.detach().to("cpu", copy=True)
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(_copied, node))
    return node


def _save_model(taken: Snapshot, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    # An adapter's base has its embeddings; PEFT would save them again where they are adapted.
    alone = {"save_embedding_layers": False} if _is_adapter(taken.model) else {}
    taken.model.save_pretrained(folder, state_dict=taken.weights, **alone)
    if _is_adapter(taken.model):
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, all of it still to be filled in
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Transformers writes the dtype of the weights in memory.
    config["dtype"] = str(taken.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _settings(schedule: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    return {"base_lrs": schedule.base_lrs}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without its functions, which are made anew from the arguments."""
    return {k: v for k, v in state.items() if k != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state.get("lr_lambdas", []))
    }


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [legacy[0], torch.from_numpy(np.asarray(legacy[1]).astype(np.int64)), *legacy[2:]],  # type: ignore[index]
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def of_all_processes(accelerator: Accelerator, own: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has of its own, with its random state, in their order, for the one that writes."""
    from accelerate.utils import gather_object

    all_own = [own | {"random": random_state()}]
    return gather_object(all_own) if accelerator.num_processes > 1 else all_own


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what ``random_state`` gave."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
