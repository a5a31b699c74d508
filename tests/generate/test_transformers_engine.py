from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from swiftune.errors import UsageError
from swiftune.generate.engine import Answer, Request, Sampling
from swiftune.generate.transformers_engine import TransformersEngine
from swiftune.runtime import console

GREEDY = Sampling(max_new_tokens=24, temperature=0)
DRAWN = Sampling(max_new_tokens=24, temperature=1.5, top_p=0.9, top_k=40, seed=7)
TEXTS = ["Who are you?", "给出保持健康的三个建议", "a", "def add(a, b):\n    return a + b\n" * 3, "1. 2. 3."]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"tiny_{request.param}")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> TransformersEngine:
    return TransformersEngine(model, tokenizer, max_batch_size=3)


def requests(tokenizer: Any, sampling: Sampling) -> list[Request]:
    return [Request(tokenizer.encode(text), sampling) for text in TEXTS]


def alone(engine: TransformersEngine, request: Request) -> Answer:
    ((_, answer),) = engine.generate([request])
    return answer


def by_hand(model: Any, request: Request, penalty: float = 1.0) -> list[int]:
    """Greedy decoding as its definition says: the whole text through the model for every token, no cache."""
    ids = list(request.prompt_ids)
    while len(ids) < len(request.prompt_ids) + request.sampling.max_new_tokens:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        ids.append(int(scores.argmax()))
        if ids[-1] in model.generation_config.eos_token_id:
            break
    return ids[len(request.prompt_ids) :]


@pytest.mark.parametrize("penalty", [None, 1.3])
def test_greedy_in_batches_is_decoding_by_hand(
    model: Any, tokenizer: Any, engine: TransformersEngine, penalty: float | None
) -> None:
    todo = requests(tokenizer, Sampling(max_new_tokens=16, temperature=0, repetition_penalty=penalty))
    answers = dict(engine.generate(todo))
    assert sorted(answers) == list(range(len(todo)))
    for index, request in enumerate(todo):
        assert answers[index].token_ids == by_hand(model, request, penalty or 1.0)
        assert answers[index].text == tokenizer.decode(answers[index].token_ids, skip_special_tokens=True)
        assert answers[index].prompt_tokens == len(request.prompt_ids)
        assert 0 < answers[index].first_token_latency < answers[index].latency


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_batch_alone_and_stream_agree(tokenizer: Any, engine: TransformersEngine, sampling: Sampling) -> None:
    todo = requests(tokenizer, sampling)
    for index, answer in engine.generate(todo):
        single = alone(engine, todo[index])
        assert (answer.token_ids, answer.finish_reason) == (single.token_ids, single.finish_reason)
        stream = engine.stream(todo[index])
        pieces = [piece.text for piece in stream]
        assert "".join(pieces) == stream.answer.text == answer.text
        assert stream.answer.token_ids == answer.token_ids


def test_seeds(tokenizer: Any, engine: TransformersEngine) -> None:
    prompt = tokenizer.encode("Who are you?")
    todo = [Request(prompt, Sampling(max_new_tokens=24, temperature=1.5, seed=seed)) for seed in (1, 2, 1, None, None)]
    one, two, again, free, other = (answer.token_ids for _, answer in sorted(engine.generate(todo), key=lambda x: x[0]))
    assert one == again
    assert len({tuple(ids) for ids in (one, two, free, other)}) == 4


def test_samples_follow_the_softmax(model: Any, tokenizer: Any) -> None:
    engine = TransformersEngine(model, tokenizer, max_batch_size=500)
    prompt = tokenizer.encode("Who are you?")
    sampling = [Sampling(max_new_tokens=1, temperature=0.7, top_k=4, seed=seed) for seed in range(4000)]
    drawn = [answer.token_ids[0] for _, answer in engine.generate([Request(prompt, s) for s in sampling])]
    with torch.no_grad():
        top = (model(torch.tensor([prompt])).logits[0, -1] / 0.7).topk(4)
    assert set(drawn) <= set(top.indices.tolist())
    for token, share in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
        assert drawn.count(token) / len(drawn) == pytest.approx(share, abs=0.03)


def test_ends_at_every_end_token(model: Any, tokenizer: Any, engine: TransformersEngine) -> None:
    prompt = tokenizer.encode("Who are you?")
    free = alone(engine, Request(prompt, DRAWN)).token_ids
    turn_end = TransformersEngine(model, tokenizer, stop_ids=[free[4]])
    answer = alone(turn_end, Request(prompt, DRAWN))
    assert answer.token_ids == free[: free.index(free[4]) + 1]
    assert answer.finish_reason == "stop"
    assert answer.text == tokenizer.decode(answer.token_ids[:-1], skip_special_tokens=True)


def test_special_token_as_a_stop_word(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tokenizer.encode("Who are you?")
    free = alone(TransformersEngine(model, tokenizer), Request(prompt, DRAWN)).token_ids
    monkeypatch.setattr(tokenizer, "get_added_vocab", lambda: {"<|mark|>": free[3]})
    sampling = Sampling(max_new_tokens=24, temperature=1.5, top_p=0.9, top_k=40, seed=7, stop=("<|mark|>",))
    answer = alone(TransformersEngine(model, tokenizer), Request(prompt, sampling))
    assert answer.token_ids == free[: free.index(free[3]) + 1]


def test_stop_words_cut_cleanly(tokenizer: Any, engine: TransformersEngine) -> None:
    for request in requests(tokenizer, DRAWN):
        text = alone(engine, request).text
        for start, length in itertools.product((3, 8), (1, 4)):
            word = text[start : start + length]
            if not word or "\ufffd" in word:
                continue
            cut = Request(request.prompt_ids, Sampling(24, 1.5, 0.9, 40, stop=(word, "not there"), seed=7))
            stream = engine.stream(cut)
            assert (
                "".join(piece.text for piece in stream)
                == stream.answer.text
                == text[: text.index(word)]
                == alone(engine, cut).text
            )
            assert stream.answer.finish_reason == "stop"


def test_rows_of_a_batch_keep_their_own_limits(tokenizer: Any, engine: TransformersEngine) -> None:
    prompt = tokenizer.encode("Who are you?")
    answers = dict(engine.generate([Request(prompt, Sampling(n, 1.5, seed=3)) for n in (2, 20, 5)]))
    assert [len(answers[i].token_ids) for i in range(3)] == [2, 20, 5]
    assert answers[1].token_ids[:5] == answers[2].token_ids
    assert {answer.finish_reason for answer in answers.values()} == {"length"}


def test_different_ways_of_sampling_in_one_call(tokenizer: Any, engine: TransformersEngine) -> None:
    prompt = tokenizer.encode("Who are you?")
    greedy, drawn = dict(engine.generate([Request(prompt, GREEDY), Request(prompt, DRAWN)])).values()
    assert greedy.token_ids == alone(engine, Request(prompt, GREEDY)).token_ids
    assert drawn.token_ids == alone(engine, Request(prompt, DRAWN)).token_ids


def test_context_bounds_the_answer(
    folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_said", set())
    small = AutoModelForCausalLM.from_pretrained(folder, max_position_embeddings=40)
    engine = TransformersEngine(small, tokenizer)
    assert engine.context == 40
    prompt = tokenizer.encode("a" * 35)
    for limit in (None, 100):
        answer = alone(engine, Request(prompt, Sampling(limit, 1.5, seed=1)))
        assert len(prompt) + len(answer.token_ids) == 40
        assert answer.finish_reason == "length"
    assert "context of 40 tokens leaves" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="no room"):
        list(engine.generate([Request(tokenizer.encode("a" * 40), GREEDY)]))
    with pytest.raises(UsageError, match="no room"):
        engine.stream(Request(tokenizer.encode("a" * 40), GREEDY))


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """What Transformers logs, also what it has logged before and would not log again."""
    root = logging.getLogger("transformers")
    transformers_logging.warning_once.cache_clear()
    root.addHandler(caplog.handler)
    yield caplog.records
    root.removeHandler(caplog.handler)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(seed=1)])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9},
        {"max_length": 100},
        {"max_length": 100, "max_new_tokens": 5},
    ],
)
def test_nothing_warns(
    model: Any,
    tokenizer: Any,
    own: dict[str, Any],
    sampling: Sampling,
    complaints: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = GenerationConfig(**model.generation_config.to_diff_dict(), **own)
    monkeypatch.setattr(model, "generation_config", config)
    before = config.to_dict()
    limited = replace(sampling, max_new_tokens=sampling.max_new_tokens or config.max_new_tokens or 9)
    alone(TransformersEngine(model, tokenizer), Request(tokenizer.encode("Who are you?"), limited))
    assert not complaints
    assert model.generation_config is config
    assert config.to_dict() == before


def test_the_models_own_defaults_fill_in(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tokenizer.encode("Who are you?")
    own = GenerationConfig(
        **model.generation_config.to_diff_dict(),
        **{"do_sample": True, "temperature": 0.8, "top_k": 5, "top_p": 0.95, "repetition_penalty": 1.2},
        max_new_tokens=6,
    )
    monkeypatch.setattr(model, "generation_config", own)
    engine = TransformersEngine(model, tokenizer)
    silent = alone(engine, Request(prompt, Sampling(seed=5)))
    assert silent.token_ids == alone(engine, Request(prompt, Sampling(6, 0.8, 0.95, 5, 1.2, seed=5))).token_ids
    greedy = alone(engine, Request(prompt, Sampling(temperature=0, repetition_penalty=1.0)))
    assert greedy.token_ids == by_hand(model, Request(prompt, Sampling(6)))


def test_closing_a_stream_stops_the_work(tokenizer: Any, engine: TransformersEngine) -> None:
    stream = engine.stream(Request(tokenizer.encode("Who are you?"), Sampling(4000, 1.5, seed=1)))
    start = time.perf_counter()
    assert next(iter(stream)).tokens
    stream.close()
    while engine.load() != (0, 0):
        assert time.perf_counter() - start < 3
        time.sleep(0.01)
    assert alone(engine, Request(tokenizer.encode("a"), GREEDY)).text  # and the engine goes on


def test_what_the_model_raises_is_raised_to_the_reader(model: Any, tokenizer: Any, engine: TransformersEngine) -> None:
    def fail(*_: Any) -> None:
        if next(step) >= 3:
            raise RuntimeError("out of memory, say")

    alone(engine, Request(tokenizer.encode("a"), DRAWN))
    step = itertools.count()
    handle = model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory, say"):
            list(engine.stream(Request(tokenizer.encode("Who are you?"), DRAWN)))
    finally:
        handle.remove()


def test_training_goes_on_in_training_mode(model: Any, tokenizer: Any) -> None:
    model.train()
    alone(TransformersEngine(model, tokenizer), Request(tokenizer.encode("a"), GREEDY))
    assert model.training
    model.eval()
