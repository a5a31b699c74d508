from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from swiftune.config import SftArguments
from swiftune.models.load import load_model
from swiftune.train.memory import Activations, _kept, compute_again, measure_activations, plan_memory
from swiftune.train.objective import SupervisedObjective
from swiftune.train.pack import pack
from swiftune.tuners import attach_lora, speed_up
from tests.train.rows import random_rows

SMOL = Activations(fixed=0, token=1_205_000, layers=30, measure_layer=lambda: 32_300)
"""Those of SmolLM2-135M with LoRA in bfloat16, but for the block of logits."""


def plan(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "free": 20 << 30,
        "device": "cpu",
        "longest": 500,
        "asked": None,
        "checkpointing": "auto",
    } | changes
    return plan_memory(SMOL, **settings)


def test_plenty_of_memory_means_no_checkpointing() -> None:
    assert (plan().budget, plan().again) == (2048, 0)


def test_two_lanes_have_together_what_one_would_have() -> None:
    both = plan(lanes=2)
    assert (both.lanes, both.budget, both.again) == (2, 1024, 0)
    assert both.activations == pytest.approx(plan().activations, rel=0.01)
    assert plan(lanes=2, longest=1500).budget == 1500
    for one in ({"asked": 512}, {"checkpointing": True}, {"free": both.activations}, {"longest": 40_000}):
        assert plan(lanes=2, **one) == plan(**one)


def test_little_memory_means_smaller_micro_batches_then_a_few_layers_then_all_then_smaller_still() -> None:
    seen = [(p.again, -p.budget) for mib in range(4000, 10, -5) if (p := plan(free=mib << 20, longest=64))]
    assert seen == sorted(seen)
    assert {(0, -1024), (0, -512), (1, -512), (15, -512), (30, -512), (30, -256)} <= set(seen)


@pytest.mark.parametrize("mib", range(100, 4000, 300))
def test_the_plan_fits_with_as_few_layers_as_needed(mib: int) -> None:
    made = plan(free=mib << 20)
    room = (mib << 20) * 0.8
    assert made.activations <= room or (made.again, made.budget) == (30, 500)
    assert made.again == 0 or SMOL.peak(made.budget, made.again - 1) > room


def test_what_is_asked_for_is_done() -> None:
    assert plan(asked=4096).budget == 4096
    assert plan(asked=100, longest=500).budget == 100
    assert 0 < plan(asked=2048, free=2 << 30).again < 30
    assert plan(free=1, checkpointing=False).again == 0
    assert plan(checkpointing=True).again == 30
    assert plan(checkpointing=True, free=200 << 20).budget < 2048
    assert plan(longest=9000, free=200 << 30).budget == 9000


@pytest.fixture(params=["lora", "full"])
def objective(request: pytest.FixtureRequest, tiny_qwen2: Path) -> SupervisedObjective:
    torch.manual_seed(0)
    model = load_model(tiny_qwen2, dtype=torch.float32)
    if request.param == "full":
        return SupervisedObjective(model)
    tuned = attach_lora(model, SftArguments(dataset=["rows"], lora_dropout=0.1))
    speed_up(tuned)
    return SupervisedObjective(tuned)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_is_measured_on_few_tokens_holds_for_many(
    objective: SupervisedObjective, dtype: torch.dtype | None
) -> None:
    def autocast() -> Any:  # full tuning computes in another dtype than its weights have
        return torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()

    if dtype and objective.model is not objective.causal_lm:
        pytest.skip("LoRA's weights are in the dtype that is computed in")
    found = measure_activations(objective, autocast, dtype.itemsize if dtype else 4, 512)
    assert found.layers == 2
    for again in (0, 1, 2):
        compute_again(objective, again)
        kept = _kept(objective, 512, autocast)
        passing = 512 * found.token / 2  # while a layer is gone back through
        assert 0.95 * kept <= found.peak(512, again) - passing <= 1.4 * kept + found.fixed, again


def test_layers_that_are_computed_again_give_the_same_gradient_and_keep_less(objective: SupervisedObjective) -> None:
    objective.train()
    kept, gradients = [], []
    for again in (0, 1, 2):
        compute_again(objective, again)
        kept.append(_kept(objective, 512, contextlib.nullcontext))
        torch.manual_seed(1)
        objective.zero_grad()
        objective(pack(random_rows(3, 8), torch.device("cpu"))).loss.backward()
        gradients.append([p.grad.clone() for p in objective.parameters() if p.grad is not None])
    assert kept[0] > kept[1] > kept[2]
    assert kept[0] - kept[1] == pytest.approx(kept[1] - kept[2], rel=0.2)
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
