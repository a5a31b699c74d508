from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from swiftune.train.plan import Layout, _first_fit, pair_work, plan_step
from swiftune.types import Row

lengths_lists = st.lists(st.integers(1, 3000), max_size=64)


@given(lengths_lists, st.integers(1, 4096), st.integers(1, 4))
def test_every_row_is_laid_out_once_within_the_budget_and_processes_keep_pace(
    lengths: list[int], budget: int, processes: int
) -> None:
    plan = plan_step(lengths, budget=budget, processes=processes)
    assert len(plan) == processes
    assert sorted(i for share in plan for batch in share for i in batch) == list(range(len(lengths)))
    assert len({len(share) for share in plan}) == 1
    assert len(plan[0]) >= 1
    for batch in (b for share in plan for b in share):
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
    assert plan == plan_step(lengths, budget=budget, processes=processes)


@given(lengths_lists, st.integers(1, 4096))
def test_there_are_no_more_micro_batches_than_first_fit_needs(lengths: list[int], budget: int) -> None:
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    assert len(plan_step(lengths, budget=budget)[0]) <= max(1, len(_first_fit(longest_first, lengths, budget)))


@given(st.lists(st.integers(1, 500), min_size=16, max_size=64), st.integers(2, 4), st.floats(0, 0.01))
def test_work_is_near_equal_attention_included(lengths: list[int], processes: int, pair: float) -> None:
    rows = [Row(np.zeros(n, np.int32), np.zeros(n, np.int32), (n,)) for n in lengths]
    plan = Layout(1000, processes, pair).plan(rows)
    cost = [n + pair * n * n for n in lengths]
    work = [sum(cost[i] for batch in share for i in batch) for share in plan]
    assert max(work) - min(work) <= max(cost) * 1.001


@given(st.lists(st.integers(1, 100), min_size=20, max_size=64))
def test_micro_batches_are_filled_evenly(lengths: list[int]) -> None:
    sizes = [sum(lengths[i] for i in batch) for batch in plan_step(lengths, budget=400)[0]]
    spread = max(sizes) - min(sizes) <= max(lengths)
    assert spread or sum(sizes) > 0.75 * 400 * len(sizes)  # too full to choose


def test_a_step_is_cut_in_halves_rather_than_into_a_full_micro_batch_and_a_rest() -> None:
    lengths = [301, 299, 280, 270, 260, 250, 240, 230, 220, 210, 200, 150, 120, 90, 29]
    assert sum(lengths) == 3149
    (plan,) = plan_step(lengths, budget=2048)
    assert [sum(lengths[i] for i in batch) for batch in plan] == pytest.approx([1575, 1575], abs=30)


def test_a_row_of_several_sequences_costs_the_sum_of_their_squares() -> None:
    """One sequence of 1,000 weighs as much as ten times as many tokens, cut in sequences of 10: attention counts."""
    one = Row(np.zeros(1000, np.int32), np.zeros(1000, np.int32), (1000,))
    many = [Row(np.zeros(1000, np.int32), np.zeros(1000, np.int32), (10,) * 100) for _ in range(8)]
    first, second = Layout(10_000, 2, pair_work=0.01).plan([one, *many])
    assert [len(batch) for batch in first + second] == [1, 8]


def test_the_work_of_attention_is_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=8,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).model

    def flops(tokens: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
        return counter.get_total_flops()

    linear = 2 * flops(100) - flops(200) / 2  # what grows by n is left, what grows by n² cancels
    square = (flops(200) - 2 * flops(100)) / 2
    # eager attention computes every pair, a causal kernel the half of them
    assert pair_work(config) == pytest.approx((square / 100**2 / 2) / (linear / 100), rel=0.02)


def test_the_work_of_attention_matters_for_long_rows_of_small_models() -> None:
    small = LlamaConfig(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    large = Qwen2Config(hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4)
    assert 2048 * pair_work(small) > 0.3
    assert 2048 * pair_work(large) < 0.05
