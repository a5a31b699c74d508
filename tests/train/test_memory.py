from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, Qwen2Config

from swiftune.train.memory import activation_bytes, plan_memory

SMOL = LlamaConfig(hidden_size=576, num_hidden_layers=30, intermediate_size=1536, vocab_size=49152)
QWEN_7B = Qwen2Config(hidden_size=3584, num_hidden_layers=28, intermediate_size=18944, vocab_size=152064)


def plan(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "free": 20 << 30,
        "device": "cpu",
        "width": 2,
        "longest": 500,
        "asked": None,
        "checkpointing": "auto",
    } | changes
    return plan_memory(settings.pop("config", SMOL), **settings)


def test_plenty_of_memory_means_no_checkpointing() -> None:
    assert (plan().budget, plan().checkpointing) == (2048, False)


def test_little_memory_means_checkpointing_then_a_smaller_budget() -> None:
    tight = plan(free=4 << 30)
    assert tight.checkpointing
    assert tight.budget == 2048
    tighter = plan(free=200 << 20)
    assert tighter.checkpointing
    assert 500 <= tighter.budget < 2048


def test_what_is_asked_for_is_done() -> None:
    assert plan(asked=4096).budget == 4096
    assert plan(asked=100, longest=500).budget == 100
    assert plan(free=1, checkpointing=False).checkpointing is False
    assert plan(checkpointing=True).checkpointing is True
    assert plan(checkpointing=True, free=200 << 20).budget < 2048


def test_float32_takes_twice_the_room() -> None:
    half, single = (activation_bytes(SMOL, 10**6, width, checkpointing=False) for width in (2, 4))
    assert single > 1.9 * half


def test_a_row_longer_than_the_default_fits() -> None:
    assert plan(longest=9000, free=200 << 30).budget == 9000


def test_checkpointing_pays() -> None:
    for config in (SMOL, QWEN_7B):
        assert (
            activation_bytes(config, 2048, 2, checkpointing=True)
            < activation_bytes(config, 2048, 2, checkpointing=False) / 4
        )
