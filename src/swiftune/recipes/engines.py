"""Picks and opens the engine that answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.config import AnswerArguments
from swiftune.errors import ModelError
from swiftune.recipes.opening import Opened
from swiftune.runtime import hardware
from swiftune.runtime.console import notice

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from swiftune.generate.engine import Engine

_ADAPTER = "--adapters"
"""What vLLM's engine calls the adapters without a name; nobody can name one so."""


def open_engine(
    args: AnswerArguments,
    opened: Opened,
    adapters: list[Path],
    named: Mapping[str, Path] | None = None,
    later: int = 0,
) -> Engine:
    """The engine that ``--infer_backend`` names, with the model and its adapters loaded. Whoever opens it closes it.

    Args:
        adapters: they answer together, by default.
        named: adapters that answer requests which name them.
        later: how many adapters there may be at the same time, if some are loaded while it runs.
    """
    if args.infer_backend == "vllm":
        return _open_vllm(args, opened, adapters, named or {}, later)
    engine = _open_transformers(args, opened, adapters)
    for name, path in (named or {}).items():
        engine.load_adapter(name, path)
    return engine


def _open_transformers(args: AnswerArguments, opened: Opened, adapters: list[Path]) -> Engine:
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


def load_for_inference(args: AnswerArguments, opened: Opened, adapters: list[Path]) -> PreTrainedModel | PeftModel:
    """The model with its adapters, in the dtype that was asked for or that is fast here."""
    from swiftune.models import quantize
    from swiftune.models.load import load_model
    from swiftune.tuners import load_adapters

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
        quantization=quantize.while_loading(args, dtype),
    )
    return load_adapters(model, adapters, args.adapter_weights)


def _open_vllm(
    args: AnswerArguments, opened: Opened, adapters: list[Path], named: Mapping[str, Path], later: int
) -> Engine:
    from swiftune.generate.engine import BASE
    from swiftune.generate.vllm_adapters import Mix
    from swiftune.generate.vllm_engine import VllmEngine
    from swiftune.generate.vllm_server import find_python

    device = hardware.device()
    python = find_python(args.vllm_python, gpu=device.type == "cuda")
    if not list(opened.folder.glob("*.safetensors")):
        raise ModelError(f"vLLM reads safetensors, and {opened.folder} has none.", "Use --infer_backend transformers.")
    dtype, said = hardware.choose_dtype(args.torch_dtype, opened.dtype, device)
    if said:
        notice(said)
    if args.quant_method:
        notice(
            f"The run held its model by --quant_method {args.quant_method} in {args.bits} bits; "
            "vLLM takes the weights as they are, and answers can differ."
        )
    tuned = Mix(adapters, args.adapter_weights) if len(adapters) > 1 else next(iter(adapters), None)
    return VllmEngine(
        opened.folder,
        opened.tokenizer,
        python=python,
        adapters=named if tuned is None else {_ADAPTER: tuned, **named},
        default=BASE if tuned is None else _ADAPTER,
        dtype=str(dtype).removeprefix("torch."),
        stop_ids=opened.renderer.stop_ids,
        trust_remote_code=args.trust_remote_code,
        lora_rank=args.vllm_max_lora_rank,
        later=later,
        words=_vllm_words(args, device),
    )


def _vllm_words(args: AnswerArguments, device: torch.device) -> list[str]:
    """The arguments as ``vllm serve`` names them."""
    words = ["--max-model-len", str(args.vllm_max_model_len or "auto")]
    words += ["--tensor-parallel-size", str(args.vllm_tensor_parallel_size)]
    at_once = args.vllm_max_num_seqs or (args.max_batch_size if "max_batch_size" in args.model_fields_set else None)
    if at_once is not None:
        words += ["--max-num-seqs", str(at_once)]
    if args.vllm_enforce_eager:
        words += ["--enforce-eager"]
    if args.vllm_gpu_memory_utilization is not None:
        words += ["--gpu-memory-utilization", str(args.vllm_gpu_memory_utilization)]
    elif device.type == "cpu" and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        # By itself it takes nine tenths of the RAM, and does not start where that is not free.
        words += ["--kv-cache-memory-bytes", str(min(4 * 2**30, hardware.free_memory(device) // 4))]
    return words
