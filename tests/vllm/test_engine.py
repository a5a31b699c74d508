"""vLLM's answers beside those of Transformers, token for token, and what an engine promises."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import torch

from swiftune.errors import AdapterError, UsageError
from swiftune.generate.engine import BASE, Answer, Request, Sampling
from swiftune.generate.transformers_engine import TransformersEngine
from swiftune.generate.vllm_engine import VllmEngine
from swiftune.models.load import load_model
from swiftune.tuners import load_adapter, load_weighted_sum
from tests import tiny
from tests.vllm.conftest import Folders, save_adapter

GREEDY = Sampling(max_new_tokens=24, temperature=0)
PROMPTS = [list(range(start, start + 2 + start % 23)) for start in range(5, 300, 6)]  # 50 of 2 to 24 tokens


def asked(sampling: Sampling = GREEDY, adapter: str | None = None, count: int = 50) -> list[Request]:
    return [Request(prompt, sampling, adapter) for prompt in PROMPTS[:count]]


def texts(engine: VllmEngine | TransformersEngine, requests: list[Request]) -> list[tuple[list[int], str, str]]:
    """Tokens, text and end of each answer, in the requests' order."""
    answers = dict(engine.generate(requests))
    return [(a.token_ids, a.text, a.finish_reason) for a in (answers[n] for n in range(len(requests)))]


def by_transformers(folders: Folders, which: str, sampling: Sampling = GREEDY) -> list[tuple[list[int], str, str]]:
    model = load_model(folders.model, dtype=torch.float32)
    tuned = {
        "base": lambda: model,
        "first": lambda: load_adapter(model, folders.first),
        "second": lambda: load_adapter(model, folders.second),
        "sum": lambda: load_weighted_sum(model, [folders.first, folders.second], [0.7, 0.3]),
    }[which]()
    return texts(TransformersEngine(tuned, tiny.make_tokenizer(), max_batch_size=16), asked(sampling))


@pytest.mark.parametrize("which", ["base", "first", "sum"])
def test_greedy_answers_are_those_of_transformers(engine: VllmEngine, folders: Folders, which: str) -> None:
    expected = by_transformers(folders, which)
    assert len({tuple(tokens) for tokens, *_ in expected}) > 40  # not all the same
    assert texts(engine, asked(adapter=BASE if which == "base" else which)) == expected


def test_a_merged_folder_answers_as_its_adapter(merged: VllmEngine, engine: VllmEngine) -> None:
    assert texts(merged, asked()) == texts(engine, asked())  # the adapter is the default
    assert merged.context == 4096  # the model's own, since there is room for it


def test_a_request_that_the_model_would_repeat_itself_in(engine: VllmEngine, folders: Folders) -> None:
    sampling = Sampling(max_new_tokens=24, temperature=0, repetition_penalty=1.5)
    assert texts(engine, asked(sampling)) == by_transformers(folders, "first", sampling)


@pytest.fixture(scope="module")
def long(engine: VllmEngine) -> int:
    """Which of the prompts gets a long answer with as few bytes that are no letters as there are."""
    answers = texts(engine, asked())
    return min((text.count("\ufffd"), n) for n, (_, text, end) in enumerate(answers) if end == "length")[1]


def test_streams_are_the_answers_in_pieces(engine: VllmEngine, long: int) -> None:
    tokens, text, finish = texts(engine, asked())[long]
    stream = engine.stream(asked()[long])
    pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(piece.text for piece in pieces) == stream.answer.text == text
    assert [token.id for piece in pieces for token in piece.tokens] == stream.answer.token_ids == tokens
    assert (stream.answer.finish_reason, stream.answer.prompt_tokens) == (finish, len(PROMPTS[long]))
    assert 0 < stream.answer.first_token_latency <= stream.answer.latency


def test_streams_in_an_event_loop(engine: VllmEngine) -> None:
    expected = texts(engine, asked(count=8))

    async def read(request: Request) -> Answer:
        stream = engine.stream(request)
        async for _ in stream:
            pass
        return stream.answer

    async def read_all() -> list[Answer]:
        return await asyncio.gather(*map(read, asked(count=8)))

    assert [(a.token_ids, a.text, a.finish_reason) for a in asyncio.run(read_all())] == expected


def test_a_stop_word_ends_the_answer_and_is_not_in_it(engine: VllmEngine, folders: Folders, long: int) -> None:
    _, text, _ = texts(engine, asked())[long]
    words = (text[at : at + 2] for at in range(len(text) // 3, len(text) - 2))
    word = next(word for word in words if "\ufffd" not in word)
    sampling = Sampling(max_new_tokens=24, temperature=0, stop=(word,))
    (answer,) = [answer for _, answer in engine.generate([Request(PROMPTS[long], sampling)])]
    assert answer.text == text[: text.index(word)]
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) < 24
    assert texts(engine, asked(sampling)) == by_transformers(folders, "first", sampling)


def test_a_seed_repeats_an_answer_whatever_runs_beside_it(engine: VllmEngine) -> None:
    alone = Request(PROMPTS[0], Sampling(max_new_tokens=16, temperature=1.0, seed=7))
    other = Request(PROMPTS[0], Sampling(max_new_tokens=16, temperature=1.0, seed=8))
    first = texts(engine, [alone])[0]
    assert texts(engine, [alone, *asked(count=12)])[0] == first
    assert texts(engine, [other])[0] != first
    unseeded = Request(PROMPTS[0], Sampling(max_new_tokens=16, temperature=1.0))
    assert len({tuple(tokens) for tokens, *_ in texts(engine, [unseeded] * 6)}) > 1


def test_log_probabilities_are_the_models_own(engine: VllmEngine, folders: Folders) -> None:
    # The temperature must not show in them.
    request = Request(PROMPTS[3], Sampling(max_new_tokens=6, temperature=0.5, seed=1), logprobs=3)
    stream = engine.stream(request)
    tokens = [token for piece in stream for token in piece.tokens]
    assert stream.answer.tokens == tokens
    model = load_adapter(load_model(folders.model, dtype=torch.float32), folders.first).eval()
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*PROMPTS[3], *stream.answer.token_ids]])).logits[0]
    expected_TV = logits_TV.log_softmax(-1)[len(PROMPTS[3]) - 1 : -1]
    for token, expected_V in zip(tokens, expected_TV, strict=True):
        assert token.logprob == pytest.approx(float(expected_V[token.id]), abs=1e-3)
        values, ids = expected_V.topk(3)
        assert [one for one, _ in token.top] == ids.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-3)
    only_chosen = dict(engine.generate([Request(PROMPTS[3], GREEDY, logprobs=0)]))[0].tokens
    assert only_chosen is not None
    assert all(token.logprob is not None and token.top == () for token in only_chosen)
    assert dict(engine.generate([Request(PROMPTS[3], GREEDY)]))[0].tokens is None


def test_a_closed_stream_frees_its_place(engine: VllmEngine) -> None:
    stream = engine.stream(Request(PROMPTS[0], Sampling(max_new_tokens=900, temperature=0, logit_bias=no_end())))
    for number, _ in enumerate(stream):
        if number == 3:
            assert engine.load() == (1, 0)
            break
    assert wait_until(lambda: engine.load() == (0, 0))
    assert wait_until(lambda: "vllm:num_requests_running" in metrics(engine) and running(engine) == 0)
    assert texts(engine, asked(count=1))


def no_end() -> tuple[tuple[int, float], ...]:
    """Forbids the tokens that would end an answer."""
    tokenizer = tiny.make_tokenizer()
    return ((tokenizer.eos_token_id, -100.0), (tokenizer.pad_token_id, -100.0))


def metrics(engine: VllmEngine) -> str:
    import httpx2

    transport = httpx2.HTTPTransport(uds=str(engine.server.socket))
    with httpx2.Client(transport=transport, base_url="http://vllm") as client:
        return client.get("/metrics").text


def running(engine: VllmEngine) -> float:
    """How many requests vLLM itself says that it works on."""
    lines = [line for line in metrics(engine).splitlines() if line.startswith("vllm:num_requests_running")]
    return sum(float(line.split()[-1]) for line in lines)


def wait_until(true: object, seconds: float = 60) -> bool:
    assert callable(true)
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_adapters_come_and_go_while_requests_are_answered(engine: VllmEngine, folders: Folders) -> None:
    beside = engine.stream(Request(PROMPTS[1], Sampling(max_new_tokens=900, temperature=0, logit_bias=no_end())))
    reading = iter(beside)
    next(reading)
    engine.load_adapter("second", folders.second)
    assert engine.adapters == ("first", "sum", "second")
    with pytest.raises(AdapterError, match="already"):
        engine.load_adapter("second", folders.second)
    assert texts(engine, asked(adapter="second")) == by_transformers(folders, "second")
    kept = engine.stream(Request(PROMPTS[2], Sampling(max_new_tokens=100, temperature=0), "second"))
    engine.unload_adapter("second")
    list(kept)  # answered to its end
    with pytest.raises(UsageError, match="second"):
        engine.stream(Request(PROMPTS[0], GREEDY, "second"))
    with pytest.raises(AdapterError, match="second"):
        engine.unload_adapter("second")
    engine.load_adapter("second", folders.first)  # another one under the old name
    assert texts(engine, asked(adapter="second")) == texts(engine, asked(adapter="first"))
    engine.unload_adapter("second")
    assert len(list(reading)) > 1
    assert len(beside.answer.token_ids) == 900


def test_what_does_not_fit_is_refused(engine: VllmEngine, folders: Folders, tmp_path: Path) -> None:
    save_adapter(folders.model, tmp_path / "wide", seed=3, r=64, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="--vllm_max_lora_rank 64"):
        engine.load_adapter("wide", tmp_path / "wide")
    other = tiny.make_model(tmp_path / "other", hidden=128)
    save_adapter(other, tmp_path / "foreign", seed=3, r=4, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="another base model"):
        engine.load_adapter("foreign", tmp_path / "foreign")
    with pytest.raises(UsageError, match="no room"):
        engine.stream(Request(list(range(5, 105)) * 11, GREEDY))
    assert engine.context == 1024
    assert texts(engine, asked(count=2))


def test_a_prompt_may_fill_all_but_one_place(engine: VllmEngine) -> None:
    (answer,) = [answer for _, answer in engine.generate([Request([7] * 1023, Sampling(temperature=0))])]
    assert (len(answer.token_ids), answer.finish_reason in ("stop", "length")) == (1, True)
