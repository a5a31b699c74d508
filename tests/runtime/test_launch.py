from __future__ import annotations

import pytest

from swiftune.errors import ArgumentsError
from swiftune.runtime import launch

NAMES = ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_processes_are_started_where_asked_for_and_by_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launch.is_wanted()
    given(monkeypatch, NPROC_PER_NODE="2")
    assert launch.is_wanted()
    given(monkeypatch, LOCAL_RANK="0")
    assert not launch.is_wanted()


def test_a_machine_alone_needs_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, NPROC_PER_NODE="2", OMP_NUM_THREADS="3")
    first, second = launch._environment(), launch._environment()
    assert (first["WORLD_SIZE"], first["LOCAL_WORLD_SIZE"], first["OMP_NUM_THREADS"]) == ("2", "2", "3")
    assert first["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] != second["MASTER_PORT"]  # two runs at once do not meet


def test_several_machines_are_numbered_and_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, NPROC_PER_NODE="8", NNODES="2", NODE_RANK="1")
    with pytest.raises(ArgumentsError, match="MASTER_ADDR") as caught:
        launch._environment()
    assert len(caught.value.mistakes) == 2
    given(monkeypatch, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    environment = launch._environment()
    assert (environment["WORLD_SIZE"], environment["MASTER_PORT"]) == ("16", "29500")
    given(monkeypatch, NODE_RANK="2")
    with pytest.raises(ArgumentsError, match="NODE_RANK=2"):
        launch._environment()


@pytest.mark.parametrize("value", ["two", "0", "-1", "", "1.5"])
def test_a_number_of_processes_is_a_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    given(monkeypatch, NPROC_PER_NODE=value)
    with pytest.raises(ArgumentsError, match="NPROC_PER_NODE"):
        launch._environment()


@pytest.mark.parametrize(
    ("codes", "code"),
    [([0, 0], 0), ([2, 75], 2), ([75, 2], 2), ([75, 75], 1), ([2, 2], 2), ([130, 130], 130), ([75, 137], 137)],
)
def test_the_code_is_of_the_process_that_failed_of_itself(codes: list[int], code: int) -> None:
    assert launch._verdict(codes, [None] * len(codes)) == code
