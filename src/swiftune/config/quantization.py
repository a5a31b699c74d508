"""Arguments of quantization: weights that are held in few bits."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from swiftune.config.declare import Arguments, unset
from swiftune.config.values import Dtype, Of

BITS: dict[str, tuple[int, ...]] = {"bnb": (4, 8), "gptq": (2, 3, 4, 8), "awq": (4,), "fp8": (8,)}
"""How many bits each method can do; the first is what it does unasked, but for gptq, which then takes 4."""


class QuantizeArguments(Arguments):
    """Quantization: weights held in few bits (QLoRA, where an adapter is trained on them; arXiv:2305.14314)."""

    quant_method: Literal["bnb"] | None = unset("none")
    """`bnb`: hold the linear layers of the model as bitsandbytes does. Needs that package."""
    quant_bits: Annotated[int, Ge(2), Le(8), Of("bits")] | None = unset("4; 8 for fp8")
    """Bits of a weight: 4 or 8 for bnb, 2, 3, 4 or 8 for gptq, 4 for awq, 8 for fp8."""
    bnb_4bit_compute_dtype: Dtype | None = unset("as --torch_dtype")
    """With bnb in 4 bits: the number format that is computed in."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """With bnb in 4 bits: which 16 values there are; nf4's lie as normally distributed weights do."""
    bnb_4bit_use_double_quant: bool = True
    """With bnb in 4 bits: quantize the scales of the blocks, too."""
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] = "uint8"
    """With bnb in 4 bits: the number format that the packed bits pass for."""

    @property
    def bits(self) -> int:
        """``quant_bits``, or what the method does unasked."""
        return self.quant_bits or (8 if str(self.quant_method) == "fp8" else 4)
