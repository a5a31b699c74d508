"""Weights in few bits: which library does it, how it is asked, and what it needs.

bnb: bitsandbytes, while a model is loaded, on a GPU or a CPU. fp8: Transformers' own blocks of 128 by 128, on a GPU.
gptq (arXiv:2210.17323) and awq (arXiv:2306.00978): GPTQModel, which looks at rows, on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.config import ExportArguments, QuantizeArguments
from swiftune.errors import UsageError
from swiftune.runtime import optional

if TYPE_CHECKING:
    import torch
    from transformers.utils.quantization_config import QuantizationConfigMixin

NEEDS = {"bnb": ("bitsandbytes", "bnb"), "gptq": ("gptqmodel", "gptq"), "awq": ("gptqmodel", "gptq")}
"""Of a method: the package, and the extra of ours that installs it."""


def check(args: QuantizeArguments, device: str) -> None:
    """Makes sure, before any other work, that what ``args`` ask for can be done here.

    Raises:
        MissingPackageError: its library is not installed.
        UsageError: it needs a GPU.
    """
    method = str(args.quant_method)
    if method in NEEDS:
        _bring(method)
    if method != "bnb" and device != "cuda":
        raise UsageError(f"--quant_method {method} needs a GPU.", "On a CPU, --quant_method bnb works.")


def _bring(method: str) -> None:
    # On a CPU bitsandbytes looks for a package that fetches machine code from a hub, and warns where there is none.
    # Of a product in 8 bits it warns, layer by layer and pass by pass, that it computes in float16.
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    package, extra = NEEDS[method]
    optional.bring(package, f"--quant_method {method}", f"'swiftune[{extra}]'")


def bring_for(config: dict[str, Any]) -> None:
    """Lets the library be imported that a model's own configuration says its weights were quantized by.

    Raises:
        MissingPackageError: it is not installed.
    """
    if (config.get("quantization_config") or {}).get("quant_method") == "bitsandbytes":
        _bring("bnb")


def while_loading(args: QuantizeArguments, dtype: torch.dtype) -> QuantizationConfigMixin | None:
    """What ``models.load`` is given so that a model is quantized while it is loaded; None: it is not to be.

    Args:
        dtype: that is computed in, unless ``args`` name another.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    import torch

    if args.quant_method is None:
        return None
    if str(args.quant_method) == "fp8":
        from transformers import FineGrainedFP8Config

        return FineGrainedFP8Config()
    _bring("bnb")
    from transformers import BitsAndBytesConfig

    if args.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = args.bnb_4bit_compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=getattr(torch, compute) if compute else dtype,
        bnb_4bit_quant_type=args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=args.bnb_4bit_use_double_quant,
        bnb_4bit_quant_storage=getattr(torch, args.bnb_4bit_quant_storage),
    )


def keep_differentiable(model: torch.nn.Module) -> None:
    """Has a model in four bits be computed in one way only, in place.

    Where a CPU has AVX-512 for bfloat16, bitsandbytes 0.50 lays out a layer's weights anew the first time it is used in
    evaluation mode, for a product that has no gradient, and takes that product in training, too, from then on.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def by_calibration(args: ExportArguments, source: Path, rows: Sequence[Sequence[int]], target: Path) -> None:
    """Quantizes the model in ``source`` by GPTQ or AWQ, and writes it to ``target``.

    Args:
        rows: token ids that it is calibrated on.
    """
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=args.bits, group_size=args.group_size, quant_method=args.quant_method)
    model: Any = GPTQModel.load(str(source), config, trust_remote_code=args.trust_remote_code)
    model.quantize([{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in rows], batch_size=1)
    model.save(str(target))
