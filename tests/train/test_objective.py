"""Packed rows against Transformers' own forward, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from swiftune.errors import ModelError
from swiftune.models.load import load_model
from swiftune.train.objective import SupervisedObjective
from swiftune.train.pack import pack
from swiftune.train.plan import plan_step
from swiftune.types import IGNORE, Row
from tests.train.rows import plain_gradient, plain_loss, random_rows, relative_difference

CPU = torch.device("cpu")


@pytest.fixture(params=["tiny_qwen2", "tiny_llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_a_packed_rows_logits_are_its_logits_alone(folder: Path) -> None:
    rows = random_rows(1, 6)
    plain = load_model(folder, dtype=torch.float32).eval()
    alone = [plain(input_ids=torch.tensor(r.ids_T.astype(np.int64))[None]).logits[0] for r in rows]
    objective = SupervisedObjective(load_model(folder, dtype=torch.float32)).eval()
    batch = pack(rows, CPU)
    hidden = objective.body(
        input_ids=batch.input_ids_1T, position_ids=batch.position_ids_1T, cu_seqlens=batch.cu_seqlens, use_cache=False
    ).last_hidden_state[0]
    expected = torch.cat(alone)
    torch.testing.assert_close(objective.head(hidden)[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_the_sequences_of_one_row_do_not_see_each_other(folder: Path) -> None:
    first, second = random_rows(2, 2)
    joined = Row(
        np.concatenate([first.ids_T, second.ids_T]),
        np.concatenate([first.labels_T, second.labels_T]),
        (len(first.ids_T), len(second.ids_T)),
    )
    objective = SupervisedObjective(load_model(folder, dtype=torch.float32)).eval()
    torch.testing.assert_close(objective(pack([joined], CPU)).loss, objective(pack([first, second], CPU)).loss)
    assert joined.supervised == first.supervised + second.supervised


def gradient(model: torch.nn.Module, rows: list[Row], budget: int) -> dict[str, torch.Tensor]:
    objective = SupervisedObjective(model)
    model.zero_grad()
    total = sum(row.supervised for row in rows)
    for positions in plan_step([len(r.ids_T) for r in rows], budget=budget)[0]:
        (objective(pack([rows[i] for i in positions], CPU)).loss / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_the_gradient_does_not_depend_on_the_layout(folder: Path, budget: int) -> None:
    rows = random_rows(3, 16)
    expected = plain_gradient(load_model(folder, dtype=torch.float32), rows)
    actual = gradient(load_model(folder, dtype=torch.float32), rows, budget)
    assert relative_difference(actual, expected) < 1e-6


def test_sums_are_what_they_say(folder: Path) -> None:
    rows = random_rows(4, 5)
    plain = load_model(folder, dtype=torch.float32).eval()
    objective = SupervisedObjective(load_model(folder, dtype=torch.float32)).eval()
    with torch.no_grad():
        sums = objective(pack(rows, CPU))
        expected = sum(plain_loss(plain, row)[0] for row in rows)
        correct = 0
        for row in rows:
            predicted = plain(input_ids=torch.tensor(row.ids_T.astype(np.int64))[None]).logits[0, :-1].argmax(-1)
            correct += int((predicted.numpy() == row.labels_T[1:]).sum())
    torch.testing.assert_close(sums.loss, expected)
    assert int(sums.correct) == correct


def test_a_process_without_rows_takes_part_with_a_zero_gradient(tiny_qwen2: Path) -> None:
    objective = SupervisedObjective(load_model(tiny_qwen2, dtype=torch.float32))
    sums = objective(pack([], CPU))
    sums.loss.backward()
    grads = [p.grad for p in objective.parameters()]
    assert all(g is not None and not g.any() for g in grads)


def test_neftune_noise_has_the_papers_size(tiny_qwen2: Path) -> None:
    objective = SupervisedObjective(load_model(tiny_qwen2, dtype=torch.float32), neftune_alpha=5.0)
    rows = random_rows(5, 3)
    batch = pack(rows, CPU)
    embedded = torch.zeros(1, batch.input_ids_1T.shape[1], 64)
    torch.manual_seed(0)
    noise = objective._noise(batch, embedded)[0]
    for row, start in zip(rows, batch.cu_seqlens, strict=False):
        bound = 5.0 / (len(row.ids_T) * 64) ** 0.5
        part = noise[start : start + len(row.ids_T)].abs()
        assert bound * 0.9 < part.max() <= bound
    clean = SupervisedObjective(load_model(tiny_qwen2, dtype=torch.float32))
    objective.eval()
    clean.eval()
    assert torch.equal(objective(batch).loss, clean(batch).loss)


def test_pack_shifts_labels_within_each_sequence() -> None:
    a = Row(np.array([1, 2, 3], np.int32), np.array([IGNORE, 2, 3], np.int32), (3,))
    b = Row(np.array([4, 5], np.int32), np.array([4, 5], np.int32), (2,))
    batch = pack([a, b], CPU)
    assert batch.input_ids_1T.tolist() == [[1, 2, 3, 4, 5] + [0] * 27]
    assert batch.labels_1T.tolist() == [[2, 3, IGNORE, 5, IGNORE] + [IGNORE] * 27]
    assert batch.position_ids_1T.tolist() == [[0, 1, 2, 0, 1, *range(27)]]
    assert batch.cu_seqlens == [0, 3, 5, 32]
    assert (a.supervised, b.supervised) == (2, 1)


def test_a_model_whose_rows_see_each_other_is_refused() -> None:
    """Falcon's attention takes no bounds of sequences: packed, its rows would leak into each other without a word."""
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(vocab_size=600, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelError, match="cannot be trained on packed rows"):
        SupervisedObjective(FalconForCausalLM(config))


def beginning_alike(seed: int, count: int, shared: int) -> list[Row]:
    """Random rows, all of which begin with the same ``shared`` tokens, not supervised."""
    rng = np.random.default_rng(seed)
    start = rng.integers(10, 40, shared).astype(np.int32)
    rows = []
    for row in random_rows(seed, count):
        ids = np.concatenate([start, row.ids_T])
        labels = np.concatenate([np.full(shared + 1, IGNORE, np.int32), row.labels_T[1:]])
        rows.append(Row(ids, labels, (len(ids),)))
    return rows


@pytest.mark.parametrize("shared", [3, 9, 40])
def test_a_shared_beginning_changes_neither_loss_nor_gradient(folder: Path, shared: int) -> None:
    rows = beginning_alike(5, 6, shared)
    results = []
    for share in (False, True):
        objective = SupervisedObjective(load_model(folder, dtype=torch.float32))
        assert objective.shares
        batch = pack(rows, CPU, share=share)
        assert batch.shared == (shared if share and shared >= 8 else 0)
        sums = objective(batch)
        sums.loss.backward()
        results.append((sums, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}))
    (one, grads), (other, shared_grads) = results
    torch.testing.assert_close(one.loss, other.loss)
    assert one.correct == other.correct
    assert relative_difference(grads, shared_grads) < 1e-5


def test_what_is_supervised_is_not_shared() -> None:
    rows = beginning_alike(6, 3, 20)
    rows[1].labels_T[12] = rows[1].ids_T[12]  # predicted at position 11, from which each row may predict its own
    batch = pack(rows, CPU, share=True)
    assert batch.shared == 11
    alone = [len(row.ids_T) - 11 for row in rows]
    assert batch.cu_seqlens[:5] == [0, *np.cumsum([11, *alone]).tolist()]
    assert batch.position_ids_1T[0, 11] == 11
    assert int((batch.labels_1T != IGNORE).sum()) == sum(row.supervised for row in rows)


def test_a_model_with_a_window_does_not_share(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=16,
    )  # fmt: skip
    assert not SupervisedObjective(MistralForCausalLM(config)).shares
