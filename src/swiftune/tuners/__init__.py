"""What is trained: adapters (PEFT's) or chosen weights of the model itself."""

from __future__ import annotations

from swiftune.tuners.adapter import load_adapter, load_adapters, load_weighted_sum
from swiftune.tuners.fast_lora import speed_up
from swiftune.tuners.full import choose_parameters, count_parameters
from swiftune.tuners.lora import attach_lora
from swiftune.tuners.merge import merge

__all__ = [
    "attach_lora",
    "choose_parameters",
    "count_parameters",
    "load_adapter",
    "load_adapters",
    "load_weighted_sum",
    "merge",
    "speed_up",
]
