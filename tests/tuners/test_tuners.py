from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from swiftune.config import SftArguments
from swiftune.errors import AdapterError, UsageError
from swiftune.models.load import load_model
from swiftune.tuners import attach_lora, choose_parameters, load_adapter, load_weighted_sum, merge
from tests import tiny


def model(folder: Path) -> Any:
    return load_model(folder, dtype=torch.float32)


@pytest.fixture
def adapter(tiny_qwen2: Path, tmp_path: Path) -> Path:
    """An adapter that changes its model's answers."""
    wrapped = attach_lora(model(tiny_qwen2), SftArguments())
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_adapters_are_float32_over_a_bfloat16_base_and_all_else_is_frozen(tiny_qwen2: Path) -> None:
    wrapped = attach_lora(load_model(tiny_qwen2, dtype=torch.bfloat16), SftArguments())
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    targets = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_regex": r".*layers\.1\..*q_proj"}, "layers.1.self_attn.q_proj.lora_A"),
        ({"target_modules": ["v_proj"]}, "v_proj.lora_B"),
        ({"lora_bias": "all"}, "q_proj.base_layer.bias"),
    ],
)
def test_what_is_asked_for_is_trained(tiny_llama: Path, tiny_qwen2: Path, settings: Any, expected: str) -> None:
    folder = tiny_llama if "modules_to_save" in settings else tiny_qwen2
    wrapped = attach_lora(model(folder), SftArguments(**settings))
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert any(expected in name for name in trained), trained
    if "target_regex" in settings:
        assert all("layers.1.self_attn.q_proj" in name for name in trained)


def test_rslora_scales_by_the_root_of_the_rank(tiny_qwen2: Path) -> None:
    wrapped = attach_lora(model(tiny_qwen2), SftArguments(use_rslora=True, lora_rank=16, lora_alpha=32))
    scalings = {m.scaling["default"] for m in wrapped.modules() if hasattr(m, "lora_A")}
    assert scalings == {32 / 16**0.5}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["q_prjo"]}, "no module 'q_prjo'.*q_proj"),
        ({"modules_to_save": ["head"]}, "--modules_to_save: this model has no module 'head'"),
        ({"target_regex": "nothing"}, "--target_regex 'nothing' matches no module"),
    ],
)
def test_names_that_fit_nothing_are_refused(tiny_qwen2: Path, settings: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        attach_lora(model(tiny_qwen2), SftArguments(**settings))


def test_frozen_and_trainable_parameters(tiny_qwen2: Path) -> None:
    def trained(**settings: Any) -> set[str]:
        m = model(tiny_qwen2)
        choose_parameters(m, SftArguments(train_type="full", **settings))
        return {name for name, p in m.named_parameters() if p.requires_grad}

    every = trained()
    assert "model.embed_tokens.weight" in every
    assert trained(freeze_parameters=["model.embed"]) == every - {"model.embed_tokens.weight"}
    assert all("layers.1" in name for name in every - trained(freeze_parameters_regex=r"layers\.1"))
    assert trained(freeze_parameters_ratio=1.0, trainable_parameters=["model.norm"]) == {"model.norm.weight"}
    assert trained(freeze_parameters_ratio=1.0, trainable_parameters_regex="bias") == {n for n in every if "bias" in n}
    half = trained(freeze_parameters_ratio=0.5)
    assert "model.embed_tokens.weight" not in half
    assert "model.norm.weight" in half
    with pytest.raises(UsageError, match="nothing to train"):
        trained(freeze_parameters_ratio=1.0)
    with pytest.raises(UsageError, match="fits no parameter"):
        trained(freeze_parameters=["modell"])


def test_an_adapter_comes_back_as_plain_peft_reads_it(tiny_qwen2: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(10)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    before = base(ids).logits
    expected = PeftModel.from_pretrained(base, adapter).eval()(ids).logits
    actual = load_adapter(model(tiny_qwen2), adapter).eval()(ids).logits
    assert torch.equal(actual, expected)
    assert not torch.allclose(actual, before)


def test_adapters_that_are_none_or_fit_another_base_are_refused(
    tiny_qwen2: Path, tiny_llama: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=f"is a whole model, not an adapter. Use --model {tiny_qwen2}"):
        load_adapter(model(tiny_qwen2), tiny_qwen2)
    with pytest.raises(AdapterError, match="there is no such folder"):
        load_adapter(model(tiny_qwen2), tmp_path / "nowhere")
    wider = tiny.make_model(tmp_path / "wider", hidden=128)
    with pytest.raises(AdapterError, match="does not fit this base model"):
        load_adapter(model(wider), adapter)
    shallow = tiny.make_model(tmp_path / "shallow", layers=1)
    with pytest.raises(AdapterError, match="made for another base model.*layers.1"):
        load_adapter(model(shallow), adapter)
    cut = shutil.copytree(adapter, tmp_path / "cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="truncated"):
        load_adapter(model(tiny_qwen2), cut)
    (cut / "adapter_config.json").write_text(json.dumps({"r": 8}))
    with pytest.raises(AdapterError, match="names no peft_type"):
        load_adapter(model(tiny_qwen2), cut)
    weights.unlink()
    with pytest.raises(AdapterError, match="has no adapter_model.safetensors"):
        load_adapter(model(tiny_qwen2), cut)


def random_adapter(folder: Path, into: Path, seed: int, **settings: Any) -> Path:
    wrapped = attach_lora(model(folder), SftArguments(**settings))
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(into)
    return into


def update(folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What merging an adapter adds to each weight, by PEFT alone."""
    from peft import PeftModel

    base = model(folder)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    return {name: p.detach() - before[name] for name, p in merged.named_parameters()}


def test_a_weighted_sum_is_the_sum_of_the_updates_whatever_their_ranks_and_layers(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    a = random_adapter(tiny_qwen2, tmp_path / "a", 1, lora_rank=4, lora_alpha=16)
    b = random_adapter(tiny_qwen2, tmp_path / "b", 2, lora_rank=8, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    expected = model(tiny_qwen2)
    update_a, update_b = update(tiny_qwen2, a), update(tiny_qwen2, b)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter += 0.7 * update_a[name] + 0.3 * update_b[name]
    ids = torch.arange(20)[None]
    mixed = load_weighted_sum(model(tiny_qwen2), [a, b], [0.7, 0.3])
    torch.testing.assert_close(mixed(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5)


SETTINGS: dict[str, dict[str, Any]] = {
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0]},
    "all but one": {"target_modules": "all-linear", "exclude_modules": ["v_proj"], "use_rslora": True},
    "by a pattern": {"target_modules": r".*\.(k|v)_proj", "r": 3, "rank_pattern": {"k_proj": 5}},
}


@pytest.mark.parametrize("order", list(itertools.permutations(SETTINGS)))
def test_a_weighted_sum_has_all_layers_in_any_order(tiny_qwen2: Path, tmp_path: Path, order: tuple[str, ...]) -> None:
    weights = dict(zip(SETTINGS, (0.7, -0.4, 1.3), strict=True))
    expected = {name: p.detach().clone() for name, p in model(tiny_qwen2).named_parameters()}
    for seed, (name, more) in enumerate(SETTINGS.items()):
        torch.manual_seed(seed)
        config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **more)
        tuned = get_peft_model(model(tiny_qwen2), config)
        for key, layer in tuned.base_model.model.named_modules():
            if isinstance(layer, LoraLayer):
                product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
                rank, alpha = layer.r["default"], config.lora_alpha
                scale = alpha / (rank**0.5 if config.use_rslora else rank)
                expected[f"{key}.weight"] += weights[name] * scale * product.detach()
        tuned.save_pretrained(tmp_path / name)
    mixed = load_weighted_sum(model(tiny_qwen2), [tmp_path / n for n in order], [weights[n] for n in order])
    for name, parameter in merge(mixed).named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def test_what_is_no_product_of_factors_cannot_be_part_of_a_sum(tiny_qwen2: Path, tmp_path: Path) -> None:
    plain = random_adapter(tiny_qwen2, tmp_path / "plain", 1)
    dora = random_adapter(tiny_qwen2, tmp_path / "dora", 2, use_dora=True)
    with pytest.raises(AdapterError, match="dora is not plain LoRA"):
        load_weighted_sum(model(tiny_qwen2), [plain, dora], [0.5, 0.5])
