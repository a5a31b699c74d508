from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from swiftune.data.render import Renderer
from swiftune.errors import UsageError
from swiftune.generate.conversation import Conversation
from swiftune.generate.engine import Request, Sampling
from swiftune.generate.transformers_engine import TransformersEngine
from swiftune.models.tokenizer import load_tokenizer
from swiftune.runtime import console

SAMPLING = Sampling(max_new_tokens=12, temperature=1.5, seed=3)


@pytest.fixture(scope="module")
def renderer(tiny_qwen2: Path) -> Renderer:
    return Renderer(load_tokenizer(tiny_qwen2))


def engine_of(folder: Path, renderer: Renderer, **config: Any) -> TransformersEngine:
    model = AutoModelForCausalLM.from_pretrained(folder, **config).eval()
    return TransformersEngine(model, renderer.tokenizer, stop_ids=renderer.stop_ids)


@pytest.fixture(scope="module")
def engine(tiny_qwen2: Path, renderer: Renderer) -> TransformersEngine:
    return engine_of(tiny_qwen2, renderer)


def test_every_turn_sees_all_before_it(engine: TransformersEngine, renderer: Renderer) -> None:
    chat = Conversation(engine, renderer, SAMPLING, system="Be brief.")
    first = "".join(chat.ask("Who are you?"))
    second = "".join(chat.ask("给出三个建议"))
    assert [m["content"] for m in chat.messages] == ["Who are you?", first, "给出三个建议", second]
    prompt = renderer.prompt([{"role": "system", "content": "Be brief."}, *chat.messages[:3]])
    stream = engine.stream(Request(prompt, Sampling(max_new_tokens=12, temperature=1.5, seed=4)))
    assert "".join(piece.text for piece in stream) == second  # the second answer's seed is the next one


def test_clear_keeps_the_system_prompt_and_a_new_one_clears(engine: TransformersEngine, renderer: Renderer) -> None:
    chat = Conversation(engine, renderer, SAMPLING, system="Be brief.")
    list(chat.ask("Who are you?"))
    chat.clear()
    assert (chat.messages, chat.system) == ([], "Be brief.")
    list(chat.ask("Who are you?"))
    chat.system = "Be long."
    assert (chat.messages, chat.system) == ([], "Be long.")


def test_an_answer_left_early_is_remembered_as_far_as_it_was_written(
    engine: TransformersEngine, renderer: Renderer
) -> None:
    chat = Conversation(engine, renderer, SAMPLING)
    pieces = chat.ask("Who are you?")
    seen = next(pieces)
    pieces.close()
    assert [m["content"] for m in chat.messages] == ["Who are you?", seen]


def test_a_failed_answer_is_not_remembered(
    engine: TransformersEngine, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Conversation(engine, renderer, SAMPLING)
    handle = engine._model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(chat.ask("Who are you?"))
    handle.remove()
    assert chat.messages == []


def test_the_oldest_rounds_are_forgotten(
    tiny_qwen2: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_said", set())
    engine = engine_of(tiny_qwen2, renderer, max_position_embeddings=160)
    chat = Conversation(engine, renderer, SAMPLING)
    for number in range(6):
        list(chat.ask(f"Question {number}: who are you?"))
    assert len(chat.messages) < 12
    assert chat.messages[-2]["content"] == "Question 5: who are you?"
    assert chat.messages[0]["role"] == "user"
    assert "oldest rounds are forgotten" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="there is room for"):
        list(chat.ask("who are you? " * 100))
    assert chat.messages[-2]["content"] == "Question 5: who are you?"  # nothing was forgotten for that


def test_max_prompt_bounds_it_too(engine: TransformersEngine, renderer: Renderer) -> None:
    with pytest.raises(UsageError, match="there is room for 20"):
        list(Conversation(engine, renderer, SAMPLING, max_prompt=20).ask("who are you? " * 10))
