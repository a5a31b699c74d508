"""Training the model's own weights, all or some of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from swiftune.config import TunerArguments
from swiftune.errors import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """How many values of a model are trained, and how many there are; packed ones count as what they stand for."""
    count: Any = getattr(model, "get_nb_trainable_parameters", None)
    if count is not None:
        trained, total = count()
        return trained, total
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def choose_parameters(model: PreTrainedModel, args: TunerArguments) -> None:
    """Sets ``requires_grad`` of every parameter; the later rule wins:

    1. everything is trained;
    2. the first ``freeze_parameters_ratio`` of the parameters (counted from the input side) is frozen;
    3. what starts with one of ``freeze_parameters`` or matches ``freeze_parameters_regex`` is frozen;
    4. what starts with one of ``trainable_parameters`` or matches ``trainable_parameters_regex`` is trained.

    Raises:
        UsageError: a name or regex fits no parameter, or nothing is left to train.
    """
    named = list(model.named_parameters())
    total, seen = sum(p.numel() for _, p in named), 0
    for _, parameter in named:
        seen += parameter.numel()
        parameter.requires_grad_(seen > args.freeze_parameters_ratio * total)
    for prefixes, regex, flag, train in (
        (args.freeze_parameters, args.freeze_parameters_regex, "freeze_parameters", False),
        (args.trainable_parameters, args.trainable_parameters_regex, "trainable_parameters", True),
    ):
        for prefix in prefixes:
            _set([p for name, p in named if name.startswith(prefix)], train, f"--{flag} {prefix}", named[0][0])
        if regex:
            pattern = re.compile(regex)
            _set([p for name, p in named if pattern.search(name)], train, f"--{flag}_regex {regex}", named[0][0])
    if not any(p.requires_grad for _, p in named):
        raise UsageError(
            "Every parameter is frozen; there is nothing to train.", "Freeze less, or use --trainable_parameters."
        )


def _set(parameters: list, train: bool, flag: str, example: str) -> None:  # type: ignore[type-arg]
    if not parameters:
        raise UsageError(f"{flag} fits no parameter of this model.", f"Its parameters have names such as {example}.")
    for parameter in parameters:
        parameter.requires_grad_(train)
