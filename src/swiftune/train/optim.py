"""Optimizer and learning-rate schedule from the arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd.graph import increment_version

from swiftune.config import SftArguments
from swiftune.errors import UsageError


def build_optimizer(model: torch.nn.Module, args: SftArguments) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters.

    Matrices decay, vectors (biases, norms) do not. LoRA+ gives every ``lora_B`` ``lorap_lr_ratio`` times the learning
    rate (arXiv:2402.12354, section 4). GaLore projects the gradients of the matrices it targets to ``galore_rank``
    (arXiv:2403.03507, algorithm 1).
    """
    optimizer = _optimizer(_groups(model, args), args)
    # PyTorch's fused kernels write into the parameters without counting it as a change; what is kept of a parameter
    # from step to step (its cast, say) goes by that count.
    optimizer.register_step_post_hook(lambda *_: increment_version([p for p in model.parameters() if p.requires_grad]))
    return optimizer


def _optimizer(groups: list[dict[str, Any]], args: SftArguments) -> torch.optim.Optimizer:
    betas, eps = (args.adam_beta1, args.adam_beta2), args.adam_epsilon
    if args.use_galore:
        from pytorch_optimizer import GaLore

        return GaLore(groups, lr=args.learning_rate, betas=betas, eps=eps)  # type: ignore[no-any-return]
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate)
    if args.optim == "adafactor":
        return torch.optim.Adafactor(groups, lr=args.learning_rate)
    # One kernel for all: equal to rounding, and four to six times as fast as one operation after the other on a CPU.
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=eps, fused=True)


def _groups(model: torch.nn.Module, args: SftArguments) -> list[dict[str, Any]]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    galore = _galore_names(model, args) if args.use_galore else set()
    ratio = args.lorap_lr_ratio or 1.0
    groups: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in named:
        key = (parameter.ndim >= 2, "lora_B" in name and ratio != 1.0, name in galore)
        groups.setdefault(key, []).append(parameter)
    result = []
    for (decays, faster, projected), parameters in groups.items():
        group: dict[str, Any] = {"params": parameters, "weight_decay": args.weight_decay if decays else 0.0}
        if faster:
            group["lr"] = args.learning_rate * ratio
        if projected:
            group |= {
                "rank": args.galore_rank,
                "update_proj_gap": args.galore_update_proj_gap,
                "scale": args.galore_scale,
                "projection_type": args.galore_proj_type,
            }
        result.append(group)
    return result


def _galore_names(model: torch.nn.Module, args: SftArguments) -> set[str]:
    """Trainable weights of linear layers whose name contains one of ``galore_target_modules`` (default: all)."""
    wanted: Iterable[str] = args.galore_target_modules or [""]
    names = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module.weight.requires_grad
        and not name.endswith("lm_head")
        and any(part in name for part in wanted)
    }
    if not names:
        raise UsageError(f"--galore_target_modules {args.galore_target_modules} name no trained linear layer.")
    return names


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()`` of nothing but tensors and numbers: GaLore keeps objects, taken apart here."""
    state = optimizer.state_dict()
    return state | {
        "state": {
            index: {key: dict(vars(value)) if key == "projector" else value for key, value in parameter.items()}
            for index, parameter in state["state"].items()
        }
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], *, settings: bool = True) -> None:
    """Puts back what ``optimizer_state`` gave.

    Args:
        settings: learning rate, decay and the like, too; False keeps those that ``optimizer`` has.

    Raises:
        ValueError: it is of another kind of optimizer, or of other parameters.
    """
    if any(new.keys() - old.keys() for new, old in zip(optimizer.param_groups, state["param_groups"], strict=False)):
        raise ValueError("its optimizer is another one than --optim and its relatives ask for")
    for parameter in state["state"].values():
        if "projector" in parameter:
            from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

            projector = GaLoreProjector()
            vars(projector).update(parameter["projector"])
            parameter["projector"] = projector
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    if not settings:
        for group, kept in zip(optimizer.param_groups, own, strict=True):
            group.update(kept)


def build_schedule(
    optimizer: torch.optim.Optimizer, args: SftArguments, *, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule over ``steps`` optimizer steps, with its warm-up.

    ``warmup_steps`` wins over ``warmup_ratio``, which is rounded up as in Transformers.
    """
    from transformers import get_scheduler

    warmup = args.warmup_steps or math.ceil(steps * args.warmup_ratio)
    try:
        return get_scheduler(  # type: ignore[no-any-return]
            args.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=args.lr_scheduler_kwargs or {}
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--lr_scheduler_type {args.lr_scheduler_type} does not take --lr_scheduler_kwargs "
            f"{args.lr_scheduler_kwargs}: {error}"
        ) from error
