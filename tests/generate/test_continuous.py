"""Requests that come and go while others run get the answers that each would get alone from plain Transformers."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from swiftune.errors import EngineEndedError, UsageError
from swiftune.generate.engine import Answer, Piece, Request, Sampling
from swiftune.generate.runners import OneByOne, Together
from swiftune.generate.transformers_engine import TransformersEngine
from tests import tiny

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
MODELS: dict[str, Callable[..., Any]] = {
    "llama, two key heads": lambda **k: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **k)),
    "llama, tied": lambda **k: LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, tie_word_embeddings=True, **k)),
    "qwen2": lambda **k: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **k)),
    "qwen3": lambda **k: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, tie_word_embeddings=True, **k)),
    "mistral, window": lambda **k: MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=7, **k)),
    "llama, stretched": lambda **k: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, rope_parameters=DYNAMIC, **k)),
    "gemma2, capped": lambda **k: Gemma2ForCausalLM(Gemma2Config(num_key_value_heads=2, sliding_window=7, **k)),
}
TOKENS = 600
ONE_BY_ONE = {"llama, stretched", "gemma2, capped"}


def made(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name](vocab_size=TOKENS + 40, max_position_embeddings=2048, **SHAPE)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config = GenerationConfig()
    return model.eval()


@functools.cache
def model_of(name: str) -> Any:
    """The engines' model."""
    return made(name)


@functools.cache
def another(name: str) -> Any:
    """The same model once more, for what is expected: a model belongs to its engine while that works."""
    return made(name)


@functools.cache
def tokenizer() -> Any:
    return tiny.make_tokenizer()


def engine_of(name: str, **more: Any) -> TransformersEngine:
    another(name)  # before there are threads
    return TransformersEngine(model_of(name), tokenizer(), **more)


@functools.cache
def expected(name: str, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """What plain ``generate`` writes."""
    ids = torch.tensor([prompt])
    written = another(name).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return [int(token) for token in written[0, len(prompt) :]]


def prompt_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(TOKENS), k=length))


def greedy(prompt: tuple[int, ...], tokens: int) -> Request:
    return Request(list(prompt), Sampling(tokens, 0.0))


def finished(engine: TransformersEngine) -> None:
    """Waits until nobody is worked on."""
    start = time.perf_counter()
    while engine.load() != (0, 0) or engine._scheduler._thread is not None:
        assert time.perf_counter() - start < 20
        time.sleep(0.002)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_greedy_answers_are_those_of_generate(name: str, data: st.DataObject) -> None:
    """At any moment of coming and leaving, size of batch, size of parts of prompts, and with prompts alike."""
    engine = engine_of(name, max_batch_size=data.draw(st.integers(1, 5), "batch"))
    engine._scheduler._chunk = data.draw(st.integers(8, 60), "chunk")
    begins = st.sampled_from([(), prompt_of(1, 40), prompt_of(2, 150)])
    each = st.tuples(
        begins, st.integers(0, 5), st.integers(1, 30), st.integers(1, 12), st.booleans(), st.integers(0, 4)
    )
    clients = data.draw(st.lists(each, min_size=1, max_size=7), "clients")

    def client(begin: tuple[int, ...], seed: int, length: int, tokens: int, leaves: bool, wait: int) -> None:
        prompt = (*begin, *prompt_of(seed, length))
        time.sleep(wait / 200)
        written: list[int] = []
        stream = engine.stream(greedy(prompt, tokens))
        for piece in stream:
            written += [token.id for token in piece.tokens]
            if leaves:
                stream.close()
                break
        right = expected(name, prompt, tokens)
        assert written == right[: len(written)]
        assert leaves or (written == right == stream.answer.token_ids)

    with ThreadPoolExecutor(len(clients)) as pool:
        for done in [pool.submit(client, *given) for given in clients]:
            done.result(timeout=60)
    finished(engine)
    assert model_of(name).config._attn_implementation != "swiftune_stored"  # the model is as it was


def test_which_models_are_answered_together() -> None:
    for name in MODELS:
        engine = engine_of(name)
        list(engine.generate([greedy((1, 2), 1)]))
        assert isinstance(engine._scheduler._runner, OneByOne if name in ONE_BY_ONE else Together), name


def test_a_short_request_ends_before_a_long_one_that_came_first() -> None:
    engine = engine_of("qwen2")
    order: list[str] = []
    long_prompt, started = prompt_of(1, 10), threading.Event()

    def long() -> None:
        for _ in engine.stream(greedy(long_prompt, 400)):
            started.set()
        order.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    assert started.wait(20)
    list(engine.stream(greedy(prompt_of(2, 10), 3)))
    order.append("short")
    thread.join()
    assert order == ["short", "long"]


def test_a_long_prompt_is_computed_in_parts_between_the_tokens_of_others() -> None:
    engine = engine_of("qwen2")
    passes: list[int] = []
    list(engine.generate([greedy((1, 2), 1)]))
    runner: Any = engine._scheduler._runner
    engine._scheduler._chunk = 32
    engine._scheduler._learn = lambda *_: None  # type: ignore[method-assign]
    run = runner.run

    def noted(works: Any) -> Any:
        passes.append(len(works))
        assert sum(work.count for work in works) <= 32 + 2
        return run(works)

    runner.run = noted
    first = iter(engine.stream(greedy(prompt_of(3, 10), 60)))
    next(first)
    second = engine.stream(greedy(prompt_of(4, 400), 4))
    list(second)
    assert passes.count(2) >= 400 // 32


async def _read_from_a_loop() -> None:
    engine = engine_of("llama, tied")
    prompts = [prompt_of(seed, 12) for seed in range(6)]

    async def read(prompt: tuple[int, ...], leave: bool) -> Answer | None:
        stream = engine.stream(greedy(prompt, 20))
        pieces: list[Piece] = []
        async for piece in stream:
            pieces.append(piece)
            if leave:
                break
        stream.close()
        if leave:
            return None
        assert "".join(piece.text for piece in pieces) == stream.answer.text
        return stream.answer

    before = threading.active_count()
    answers = await asyncio.gather(*(read(prompt, n == 2) for n, prompt in enumerate(prompts)))
    assert threading.active_count() <= before + 1  # no thread a reader
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert (answer is None) == (n == 2)
        assert answer is None or answer.token_ids == expected("llama, tied", prompt, 20)


def test_async_readers() -> None:
    asyncio.run(_read_from_a_loop())


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    engine = engine_of("llama, two key heads", max_batch_size=8)
    kinds = [
        Sampling(12, 1.3, seed=1),
        Sampling(12, 1.3, 0.7, 0, seed=2),
        Sampling(12, 0.8, 1.0, 0, seed=3),
        Sampling(12, 1.1, 0.9, 20, 1.2, seed=4),
        Sampling(12, 1.1, 1.0, 0, seed=5, min_p=0.05),
        Sampling(12, 0.0),
    ]
    requests = [Request(prompt_of(n, 9), kind) for n, kind in enumerate(kinds)]
    together = dict(engine.generate(requests))
    for n, request in enumerate(requests):
        ((_, alone),) = engine.generate([request])
        assert alone.token_ids == together[n].token_ids
    ((_, other),) = engine.generate([replace(requests[0], sampling=replace(kinds[0], seed=9))])
    assert other.token_ids != together[0].token_ids


def test_log_probabilities_are_those_of_a_plain_pass() -> None:
    name = "llama, two key heads"
    engine, prompt = engine_of(name), prompt_of(5, 11)
    asked = [Sampling(8, 0.0), Sampling(8, 1.4, seed=3), Sampling(8, 0.0, repetition_penalty=1.5)]
    for sampling in asked:
        ((_, answer),) = engine.generate([Request(prompt, sampling, logprobs=3)])
        assert answer.tokens is not None
        with torch.no_grad():
            logits = another(name)(torch.tensor([[*prompt, *answer.token_ids]])).logits[0, len(prompt) - 1 : -1]
        for scores, token in zip(logits.log_softmax(-1), answer.tokens, strict=True):
            best = scores.topk(3)
            assert token.logprob == pytest.approx(float(scores[token.id]), abs=1e-4)
            assert [i for i, _ in token.top] == best.indices.tolist()
            assert [p for _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [token.id for token in answer.tokens] == answer.token_ids
    ((_, none),) = engine.generate([Request(prompt, asked[0])])
    assert none.tokens is None


def test_penalties_and_biases() -> None:
    name, prompt = "llama, two key heads", prompt_of(6, 8)
    engine = engine_of(name)

    def ids(**sampling: Any) -> list[int]:
        ((_, answer),) = engine.generate([Request(prompt, Sampling(20, 0.0, **sampling))])
        return answer.token_ids

    assert len(set(ids(presence_penalty=1000.0))) == len(set(ids(frequency_penalty=1000.0))) == 20
    assert ids(logit_bias=((7, 1000.0),)) == [7] * 20
    assert not set(ids(repetition_penalty=1e6)) & set(prompt)
    with pytest.raises(UsageError, match="no token 9999"):
        ids(logit_bias=((9999, 1.0),))


def test_a_failure_reaches_its_own_request_only() -> None:
    """A pass that fails is done again in halves, until it is known whose it was."""
    name = "qwen2"
    engine = engine_of(name)
    list(engine.generate([greedy((1, 2), 1)]))
    bad = prompt_of(7, 20)[3]

    def fail(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if bad in kwargs["input_ids"]:
            raise RuntimeError("this one")

    prompts = [tuple(t for t in prompt_of(n, 20) if t != bad) for n in range(4)]
    wants = [expected(name, prompt, 15) for prompt in prompts]
    if any(bad in want for want in wants):
        pytest.skip("the token is written")
    with model_of(name).register_forward_pre_hook(fail, with_kwargs=True):
        streams = [engine.stream(greedy(prompt, 15)) for prompt in prompts]
        broken = engine.stream(greedy(prompt_of(7, 20), 15))
        with pytest.raises(RuntimeError, match="this one"):
            list(broken)
        for stream, want in zip(streams, wants, strict=True):
            list(stream)
            assert stream.answer.token_ids == want


def test_memory_stays_flat_and_prefixes_are_found_again() -> None:
    name = "llama, two key heads"
    engine = engine_of(name, max_batch_size=4, prefix_bytes=300_000)
    begin = prompt_of(1, 200)
    sizes = []
    for turn in range(12):
        requests = [greedy((*begin, *prompt_of(10 * turn + n, 20)), 5) for n in range(8)]
        for n, answer in engine.generate(requests):
            assert answer.token_ids == expected(name, tuple(requests[n].prompt_ids), 5)
        runner: Any = engine._scheduler._runner
        sizes.append(runner.store.nbytes)
        assert 0 < runner.prefixes.nbytes <= 300_000
    assert max(sizes[1:]) <= sizes[0]
    computed: list[int] = []
    run = runner.run
    runner.run = lambda works: (computed.append(sum(w.count for w in works)), run(works))[1]
    list(engine.generate([greedy((*begin, 3, 4), 1)]))
    assert sum(computed) <= 3


def test_closing_the_engine_ends_its_readers() -> None:
    engine = engine_of("qwen2", max_batch_size=1)
    running, waiting = (engine.stream(greedy(prompt_of(n, 5), 2000)) for n in range(2))
    begun = iter(running)
    next(begun)
    engine.close()
    for stream in (begun, waiting):
        with pytest.raises(EngineEndedError, match="closed"):
            list(stream)
    with pytest.raises(EngineEndedError, match="closed"):
        engine.stream(greedy((1, 2), 1))
    with pytest.raises(EngineEndedError, match="closed"):
        engine.load()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models only wait for each other on several cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
