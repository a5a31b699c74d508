"""Picks and opens the engine that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.config import AnswerArguments
from swiftune.recipes.opening import Opened
from swiftune.runtime import hardware
from swiftune.runtime.console import notice

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from swiftune.generate.engine import Engine


def open_engine(args: AnswerArguments, opened: Opened, adapters: list[Path]) -> Engine:
    """The engine that ``--infer_backend`` names, with the model and its adapters loaded."""
    from swiftune.generate.transformers_engine import TransformersEngine
    from swiftune.models.load import load_model
    from swiftune.tuners import load_adapter, load_weighted_sum

    device = hardware.device()
    dtype, said = hardware.choose_dtype(args.torch_dtype, opened.dtype, device)
    if said:
        notice(said)
    model = load_model(
        opened.folder,
        dtype=dtype,
        attn_impl=args.attn_impl,
        device=device,
        trust_remote_code=args.trust_remote_code,
    )
    if len(adapters) > 1:
        tuned: PreTrainedModel | PeftModel = load_weighted_sum(model, adapters, args.adapter_weights)
    else:
        tuned = load_adapter(model, adapters[0]) if adapters else model
    weights = sum(parameter.nbytes for parameter in tuned.parameters())
    return TransformersEngine(
        tuned,
        opened.tokenizer,
        stop_ids=opened.renderer.stop_ids,
        max_batch_size=args.max_batch_size,
        pack=device.type == "cpu" and hardware.free_memory(device) > 4 * weights,
    )
