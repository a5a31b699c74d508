from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swiftune.train.plan import plan_step

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


@given(st.lists(st.integers(1, 100), min_size=16, max_size=64), st.integers(2, 4))
def test_work_is_near_equal(lengths: list[int], processes: int) -> None:
    plan = plan_step(lengths, budget=200, processes=processes)
    work = [sum(lengths[i] for batch in share for i in batch) for share in plan]
    assert max(work) - min(work) <= max(lengths)


def test_longest_first_fills_what_is_left() -> None:
    assert plan_step([3, 9, 1, 7], budget=10) == [[[1, 2], [3, 0]]]
