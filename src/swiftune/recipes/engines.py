"""Picks and opens the engine that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.config import InferArguments
from swiftune.recipes.opening import Opened
from swiftune.runtime import hardware
from swiftune.runtime.console import notice

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from swiftune.generate.engine import Engine


def open_engine(args: InferArguments, opened: Opened, adapters: list[Path]) -> Engine:
    """The engine that ``--infer_backend`` names, with the model and its adapters loaded."""
    from swiftune.generate.transformers_engine import TransformersEngine

    model = load_for_inference(args, opened, adapters)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return TransformersEngine(
        model,
        opened.tokenizer,
        stop_ids=opened.renderer.stop_ids,
        max_batch_size=args.max_batch_size,
        pack=model.device.type == "cpu" and hardware.free_memory(model.device) > 4 * weights,
    )


def load_for_inference(args: InferArguments, opened: Opened, adapters: list[Path]) -> PreTrainedModel | PeftModel:
    """The model with its adapters, in the dtype that was asked for or that is fast here."""
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
        return load_weighted_sum(model, adapters, args.adapter_weights)
    return load_adapter(model, adapters[0]) if adapters else model
