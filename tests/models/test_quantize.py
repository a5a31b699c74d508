from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from swiftune.config import SftArguments
from swiftune.models import quantize
from swiftune.models.load import load_model
from swiftune.tuners import attach_lora, speed_up

bitsandbytes = pytest.importorskip("bitsandbytes")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of a LoRA on ``model``, which was looked at in evaluation mode before, as training does."""
    torch.manual_seed(0)
    wrapped = attach_lora(model, SftArguments(lora_dropout=0.0))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    speed_up(wrapped)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        wrapped.eval()(input_ids=ids)
    wrapped.train()(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in wrapped.named_parameters() if parameter.requires_grad}


def test_the_gradient_is_that_of_the_weights_that_the_bits_stand_for(tiny_llama: Path) -> None:
    args = SftArguments(quant_method="bnb", quant_bits=4)
    config = quantize.while_loading(args, torch.float32)
    small = load_model(tiny_llama, dtype=torch.float32, quantization=config)
    quantize.keep_differentiable(small)
    full = load_model(tiny_llama, dtype=torch.float32)
    layers = [name for name, layer in small.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    with torch.no_grad():
        for name in layers:
            packed: Any = small.get_submodule(name).weight
            own: Any = full.get_submodule(name).weight
            assert not torch.equal(bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state), own)
            own.copy_(bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state))
    expected, actual = gradients(full), gradients(small)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_flags_reach_the_library() -> None:
    flags = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False, "bnb_4bit_quant_storage": "float16"}
    config: Any = quantize.while_loading(SftArguments(quant_method="bnb", quant_bits=4, **flags), torch.bfloat16)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "fp4", False)
    assert (config.bnb_4bit_quant_storage, config.bnb_4bit_compute_dtype) == (torch.float16, torch.bfloat16)
    eight: Any = quantize.while_loading(SftArguments(quant_method="bnb", quant_bits=8), torch.bfloat16)
    assert eight.load_in_8bit
    assert quantize.while_loading(SftArguments(), torch.bfloat16) is None
