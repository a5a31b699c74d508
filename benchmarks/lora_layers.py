"""LoRA layers beside PEFT's own: ``python -m benchmarks.lora_layers``.

A real decoder layer's projections, forward and backward at 2,048 tokens, adapter in float32:
layers that share an input as one row (q, k, v; gate, up), the others alone. "frozen" is the time of the base's own
matrix products, without LoRA: what is left of a row above it is what LoRA costs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.measure import DTYPE, DTYPE_NAME, Report, Run, command, in_turn, machine
from swiftune.runtime.console import hushed
from swiftune.tuners import speed_up
from swiftune.tuners.adapter import RENAMED

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "SmolLM2-135M": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_attention_heads=9,
            num_key_value_heads=3,
            num_hidden_layers=1,
            vocab_size=64,
        )
    ),
    "Qwen2-7B": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=3584,
            intermediate_size=18944,
            num_attention_heads=28,
            num_key_value_heads=4,
            num_hidden_layers=1,
            vocab_size=64,
        )
    ),
}
REPEATS = {"SmolLM2-135M": 5, "Qwen2-7B": 3}
"""The large one takes seconds a time."""
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def layers(model: torch.nn.Module, names: Sequence[str]) -> list[Any]:
    """The modules that are called so."""
    found = {path.rpartition(".")[2]: module for path, module in model.named_modules()}
    return [found[name] for name in names]


def passes(group: Sequence[torch.nn.Module], x_TD: torch.Tensor, seed_TO: Sequence[torch.Tensor]) -> Run:
    """Forward and backward of layers on one input, as they run inside a model."""

    def run() -> None:
        leaf = x_TD.detach().requires_grad_()
        torch.autograd.backward([layer(leaf) for layer in group], list(seed_TO))
        for layer in group:
            layer.zero_grad()

    return run


def tuned(base: PreTrainedModel, rank: int, dropout: float) -> Any:
    """A copy of ``base`` with LoRA whose second factor is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=4 * rank, lora_dropout=dropout, target_modules="all-linear")
    with hushed(RENAMED):
        model = get_peft_model(copy.deepcopy(base), config).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.02
    return model


def run(
    models: Sequence[str] = tuple(MODELS),
    tokens: int = 2048,
    ranks: Sequence[int] = (8, 64),
    dropouts: Sequence[float] = (0.0, 0.05),
    repeats: int | None = None,
) -> Report:
    """Times every group of every model."""
    report = Report(
        f"LoRA layers, forward and backward at {tokens:,} tokens, milliseconds, {DTYPE_NAME}, {machine()}",
        ("model", "layers", "rank", "dropout", "frozen", "PEFT", "ours", "ratio", "ratio of LoRA's part"),
    )
    for model_name in models:
        base = MODELS[model_name]().to(DTYPE).requires_grad_(False)
        for rank in ranks:
            for dropout in dropouts:
                slow, fast = tuned(base, rank, dropout), tuned(base, rank, dropout)
                assert speed_up(fast) == 7
                for names in GROUPS:
                    frozen = layers(base, names)
                    x_TD = torch.randn(1, tokens, frozen[0].in_features, dtype=DTYPE)
                    seeds = [torch.randn(1, tokens, layer.out_features, dtype=DTYPE) for layer in frozen]
                    groups = frozen, layers(slow, names), layers(fast, names)
                    times = in_turn([passes(group, x_TD, seeds) for group in groups], repeats or REPEATS[model_name])
                    alone, peft, own = (1000 * times.median(i) for i in range(3))
                    label = " ".join(name.removesuffix("_proj") for name in names)
                    part = (peft - alone) / (own - alone) if own > alone else float("inf")
                    report.add(model_name, label, rank, dropout, alone, peft, own, times.ratio(1), part)
    report.notes.append(
        "ratio of LoRA's part: what PEFT adds to the frozen product, over what ours adds. Where the frozen product is "
        "most of both, no LoRA can be much faster than another. inf: ours took no longer than the frozen product alone."
    )
    return report


if __name__ == "__main__":
    command(run)
