from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swiftune.generate.engine import Request, Sampling
from swiftune.generate.kv_store import KVStore, Layers, Place, Shelf
from swiftune.generate.transformers_engine import TransformersEngine
from tests import tiny

NONE = torch.OutOfMemoryError("no memory")


def pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(20, 2, 4), torch.randn(20, 2, 4)


@pytest.mark.parametrize("last", range(4))
def test_what_is_held_stays_where_there_is_no_memory_for_more(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    store = KVStore()
    layers = {number: pair(number) for number in range(2)}
    place = store.open(20)
    store.put(place, layers)
    room: Callable[..., torch.Tensor] = Shelf._room
    left = iter(range(last))

    def scarce(*args: Any) -> torch.Tensor:
        if next(left, None) is None:
            raise NONE
        return room(*args)

    monkeypatch.setattr(Shelf, "_room", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        store.open(20)
    monkeypatch.undo()
    for _ in range(2):  # before a place more is opened, and after
        for number, held in store.take(place, 20).items():
            torch.testing.assert_close(held, layers[number], rtol=0, atol=0)
        store.put(store.open(20), layers)


def test_a_request_begins_anew_where_its_first_tokens_could_not_be_laid_in(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(AutoModelForCausalLM.from_pretrained(tiny_qwen2), tiny.make_tokenizer())
    request = Request(list(range(5, 45)), Sampling(5, 0.0))
    ((_, wanted),) = engine.generate([request])
    put, failures = KVStore.put, iter([NONE])

    def scarce(store: KVStore, place: Place, layers: Layers) -> None:
        for error in failures:
            put(store, place, {0: layers[0]})
            raise error
        put(store, place, layers)

    other = engine.stream(Request([3, 4], Sampling(400, 1.5, seed=1)))
    reading = iter(other)
    next(reading)
    monkeypatch.setattr(KVStore, "put", scarce)
    ((_, answer),) = engine.generate([request])
    assert next(failures, None) is None
    assert answer.token_ids == wanted.token_ids
    other.close()
