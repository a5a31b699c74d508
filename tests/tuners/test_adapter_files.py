"""Adapters as files: the weighted sum that needs no model is the one that PEFT makes on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from swiftune.errors import AdapterError
from swiftune.models.load import load_model
from swiftune.tuners import load_adapter, load_weighted_sum
from swiftune.tuners.adapter_files import largest_rank, write_weighted_sum


def save(model: Path, target: Path, *, seed: int, **config: Any) -> Path:
    torch.manual_seed(seed)
    tuned = get_peft_model(load_model(model, dtype=torch.float32), LoraConfig(init_lora_weights=False, **config))
    tuned.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def adapters(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of different ranks, scalings and layers."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        save(tiny_qwen2, root / "all", seed=1, r=3, lora_alpha=8, target_modules="all-linear"),
        save(
            tiny_qwen2, root / "few", seed=2, r=5, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_rslora=True
        ),
        save(
            tiny_qwen2,
            root / "uneven",
            seed=3,
            r=2,
            lora_alpha=4,
            target_modules=["v_proj", "up_proj"],
            rank_pattern={"layers.1.self_attn.v_proj": 6},
            alpha_pattern={"up_proj": 1, "layers.1.self_attn.v_proj": 3},
        ),
    ]


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], [0.7, 0.3, 0.5], [0.0, 0.0, 2.0]])
def test_the_written_sum_is_the_sum_on_the_model(
    weights: list[float], adapters: list[Path], tiny_qwen2: Path, tmp_path: Path
) -> None:
    ids_1T = torch.arange(5, 45)[None]
    plain = load_model(tiny_qwen2, dtype=torch.float32)
    written = load_adapter(
        load_model(tiny_qwen2, dtype=torch.float32), write_weighted_sum(adapters, weights, tmp_path / "sum")
    ).eval()
    on_model = load_weighted_sum(load_model(tiny_qwen2, dtype=torch.float32), adapters, weights)
    with torch.no_grad():
        got, expected, without = (model(ids_1T).logits for model in (written, on_model, plain))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (without - expected).abs().max() > 0.1
    assert largest_rank(tmp_path / "sum") == 3 + 5 + 6 or weights  # side by side


def test_ranks(adapters: list[Path]) -> None:
    assert [largest_rank(path) for path in adapters] == [3, 5, 6]


def test_what_is_no_sum_of_products_is_refused(
    tiny_qwen2: Path, tiny_llama: Path, adapters: list[Path], tmp_path: Path
) -> None:
    dora = save(tiny_qwen2, tmp_path / "dora", seed=1, r=2, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(AdapterError, match="DoRA"):
        write_weighted_sum([adapters[0], dora], [1.0, 1.0], tmp_path / "sum")
    saved = save(tiny_llama, tmp_path / "saved", seed=1, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="modules_to_save"):
        write_weighted_sum([saved], [1.0], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
