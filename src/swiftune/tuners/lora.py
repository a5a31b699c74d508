"""LoRA and its relatives, through PEFT.

LoRA: arXiv:2106.09685. DoRA: arXiv:2402.09353. rsLoRA: arXiv:2312.03732.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from swiftune.config import TunerArguments
from swiftune.errors import UsageError
from swiftune.runtime.console import hushed
from swiftune.tuners.adapter import RENAMED, TIED, in_float32

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach_lora(model: PreTrainedModel, args: TunerArguments) -> PeftModel:
    """Puts LoRA layers into ``model`` (in place) and freezes all else.

    The adapters are float32 whatever the model's dtype, so that small updates are not rounded away.

    Raises:
        UsageError: ``target_modules`` or ``target_regex`` name nothing in this model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=_targets(args),
        modules_to_save=args.modules_to_save or None,
        ensure_weight_tying=_trains_tied_weights(model, args),
        bias=args.lora_bias,
        use_dora=args.use_dora,
        use_rslora=args.use_rslora,
        init_lora_weights=args.init_weights,
    )
    _check_names(model, args)
    with hushed(RENAMED), hushed(TIED, UserWarning):
        return in_float32(get_peft_model(model, config))


def _trains_tied_weights(model: PreTrainedModel, args: TunerArguments) -> bool:
    """Whether embeddings and output head are one matrix that is trained whole: PEFT would train two else."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module in ends}
    return bool(getattr(model.config, "tie_word_embeddings", False) and names.intersection(args.modules_to_save))


def _targets(args: TunerArguments) -> str | list[str]:
    if args.target_regex:
        return args.target_regex
    return "all-linear" if args.target_modules == ["all-linear"] else args.target_modules


def _check_names(model: PreTrainedModel, args: TunerArguments) -> None:
    names = [name for name, _ in model.named_modules() if name]
    leaves = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if not any(m.children()) and name})
    if args.target_regex:
        pattern = re.compile(args.target_regex)
        if not any(pattern.fullmatch(name) for name in names):
            raise UsageError(
                f"--target_regex {args.target_regex!r} matches no module of this model.",
                f"It must match whole names such as {names[-1]!r}.",
            )
        return
    for flag, wanted in (("target_modules", args.target_modules), ("modules_to_save", args.modules_to_save)):
        for name in wanted:
            if name != "all-linear" and not any(n == name or n.endswith(f".{name}") for n in names):
                raise UsageError(f"--{flag}: this model has no module {name!r}.", f"It has: {', '.join(leaves)}.")
