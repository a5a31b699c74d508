"""Micro-batches side by side: the gradient of one after the other, and the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from swiftune.config import SftArguments
from swiftune.models.load import load_model
from swiftune.train import lanes
from swiftune.train.lanes import Lanes
from swiftune.tuners import attach_lora, speed_up
from tests.recipes.chats import Flags, chats, log_of, run_of, sft, write_jsonl

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base(tiny_qwen2: Path, tmp_path: Path) -> Flags:
    return {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(27)),
        "val_dataset": write_jsonl(tmp_path / "val.jsonl", chats(5, seed=9)),
        "torch_dtype": "float32",
        "gradient_accumulation_steps": 9,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_steps": 3,
        "output_dir": tmp_path / "out",
    }


def figures(run: Path) -> list[float]:
    return [r[key] for r in log_of(run) for key in ("loss", "acc", "grad_norm", "eval_loss", "eval_acc") if key in r]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint-6/adapter_model.safetensors")


def test_the_run_is_that_of_one_lane(base: Flags, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base |= {"lora_dropout": 0, "optim": "sgd", "learning_rate": 0.1}  # AdamW would enlarge the rounding
    assert sft(base) == 0
    assert "of up to 1024 tokens, 2 at once" in capfd.readouterr().err
    torch.set_num_threads(1)
    assert sft(base, output_dir=tmp_path / "one") == 0
    assert "2 at once" not in capfd.readouterr().err
    both, one = run_of(tmp_path / "out"), run_of(tmp_path / "one")
    assert figures(both) == pytest.approx(figures(one), rel=1e-5)
    for name, value in adapter(one).items():
        torch.testing.assert_close(adapter(both)[name], value, rtol=1e-4, atol=1e-6)


def test_the_bits_do_not_depend_on_which_lane_was_first_and_are_those_of_a_resumed_run(
    base: Flags, tmp_path: Path
) -> None:
    base |= {"lora_dropout": 0.2, "neftune_noise_alpha": 5}
    runs = []
    for name in ("out", "again", "resumed"):
        more = {"resume_from_checkpoint": run_of(tmp_path / "out") / "checkpoint-2"} if name == "resumed" else {}
        assert sft(base | more, output_dir=tmp_path / name) == 0
        runs.append(run_of(tmp_path / name))
    first, *others = runs
    for run in others:
        assert all(torch.equal(adapter(run)[key], value) for key, value in adapter(first).items())
    assert figures(others[0]) == figures(first)
    assert figures(others[1]) == figures(first)[2 * 3 :]


def test_going_on_with_fewer_cores_is_told(base: Flags, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sft(base) == 0
    torch.set_num_threads(1)
    more = {"resume_from_checkpoint": run_of(tmp_path / "out") / "checkpoint-2", "output_dir": tmp_path / "fewer"}
    assert sft(base | more) == 0
    assert "The run computed 2 micro-batches at a time, and now 1" in capfd.readouterr().err


def test_each_lane_draws_for_itself_and_the_default_generator_says_what() -> None:
    from swiftune.runtime.seeds import generator

    def draw(lane: int) -> list[float]:
        return [torch.rand(1, generator=generator()).item() for _ in range(50 + lane)]

    torch.manual_seed(1)
    pair = Lanes(2)
    first, second = pair.run(draw)
    assert not set(first) & set(second)
    assert [first, second] != pair.run(draw)
    torch.manual_seed(1)
    assert [first, second] == pair.run(draw)
    assert generator() is None


def test_what_goes_wrong_in_a_lane_is_raised_once_all_have_ended() -> None:
    ended = []

    def work(lane: int) -> None:
        if lane == 0:
            raise MemoryError
        torch.rand(500, 500) @ torch.rand(500, 500)
        ended.append(lane)

    with pytest.raises(MemoryError):
        Lanes(2).run(work)
    assert ended == [1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 2), ({"lora_dropout": 0.0}, 2), ({"use_dora": True}, 1), ({"use_dora": True, "lora_dropout": 0.0}, 2)],
    ids=str,
)
def test_only_where_nothing_else_is_drawn(tiny_qwen2: Path, settings: dict[str, Any], count: int) -> None:
    model = attach_lora(load_model(tiny_qwen2, dtype=torch.float32), SftArguments(**settings))
    assert lanes.fitting(model, CPU, 1) == (count if settings.get("lora_dropout") == 0 else 1)  # PEFT's dropout
    speed_up(model)
    assert lanes.fitting(model, CPU, 1) == count
    assert lanes.fitting(model, CPU, 2) == 1
    assert lanes.fitting(load_model(tiny_qwen2, dtype=torch.float32), CPU, 1) == 1
