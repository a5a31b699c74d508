"""Optimizers, as the layers see what they change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swiftune.config import SftArguments
from swiftune.models.load import load_model
from swiftune.train.optim import build_optimizer
from swiftune.tuners import attach_lora
from swiftune.tuners.fast_lora import speed_up


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
def test_fast_layers_in_16_bits_compute_with_what_the_optimizer_wrote(tiny_qwen2: Path, optim: str) -> None:
    """The layers keep their adapters' cast from micro-batch to micro-batch; a step must not leave them the old one."""
    ids = torch.arange(3, 30)[None]
    gains = []
    for fast in (False, True):
        torch.manual_seed(0)
        args = SftArguments(lora_dropout=0.0, optim=optim, learning_rate=2.0 if optim == "sgd" else 0.1)
        model = attach_lora(load_model(tiny_qwen2, dtype=torch.bfloat16), args).train()
        if fast:
            assert speed_up(model)
        optimizer = build_optimizer(model, args)
        losses = []
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        gains.append(losses[0] - losses[1])
    plain, ours = gains
    assert plain > 0.01
    assert abs(ours - plain) < 0.2 * plain
