"""What the real ``openai`` client is answered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from swiftune.data.render import Renderer
from swiftune.models.tokenizer import token_bytes
from tests import tiny
from tests.serve.conftest import SYSTEM, Server

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ASK: list[Any] = [{"role": "user", "content": "Who are you?"}]
WORDS = tiny.TEXT.split()
PROMPTS = [" ".join(WORDS[number : number + 1 + number % 7]) for number in range(50)]


def reference(folder: Path, questions: list[str], adapter: Path | None = None, system: str | None = None) -> list[str]:
    """What plain ``generate`` answers, one by one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    renderer = Renderer(tiny.make_tokenizer(), system=system)
    answers = []
    for question in questions:
        ids = renderer.prompt([{"role": "user", "content": question}])
        written = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
        answers.append(renderer.tokenizer.decode(written, skip_special_tokens=True))
    return answers


def greedy(server: Server, model: str, question: str, **more: Any) -> Any:
    ask: list[Any] = [{"role": "user", "content": question}]
    return server.client.chat.completions.create(model=model, messages=ask, temperature=0, **{"max_tokens": 12, **more})


def test_fifty_greedy_answers_are_those_of_plain_generate(server: Server, tiny_qwen2: Path) -> None:
    answers = [greedy(server, "tiny", question).choices[0].message.content for question in PROMPTS]
    assert answers == reference(tiny_qwen2, PROMPTS)


def test_adapters_are_asked_by_name(server: Server, tiny_qwen2: Path, adapters: Path) -> None:
    listed = {model.id: model for model in server.client.models.list()}
    assert list(listed) == ["tiny", "code"]
    assert listed["code"].model_extra == {"root": str(adapters / "code"), "parent": "Tiny-Qwen2", "max_model_len": 4096}
    assert server.client.models.retrieve("code").id == "code"
    few = PROMPTS[:8]
    answers = [greedy(server, "code", question).choices[0].message.content for question in few]
    assert answers == reference(tiny_qwen2, few, adapters / "code") != reference(tiny_qwen2, few)


def test_an_adapter_is_loaded_and_unloaded(server: Server, tiny_qwen2: Path, adapters: Path) -> None:
    assert server.post("/v1/load_lora_adapter", {"lora_name": "late", "lora_path": "chat"}).status_code == 200
    few = PROMPTS[:4]
    answers = [greedy(server, "late", question).choices[0].message.content for question in few]
    assert answers == reference(tiny_qwen2, few, adapters / "chat", SYSTEM)
    again = server.post("/v1/load_lora_adapter", {"lora_name": "late", "lora_path": str(adapters / "chat")})
    assert again.status_code == 400
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "late"}).status_code == 200
    with pytest.raises(openai.NotFoundError, match="late"):
        greedy(server, "late", "Hello")
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "late"}).status_code == 404
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "tiny"}).status_code == 400


def test_a_stream_is_the_whole_answer_in_pieces(server: Server) -> None:
    whole = greedy(server, "tiny", "你是谁？", max_tokens=40)
    chunks = list(
        greedy(server, "tiny", "你是谁？", max_tokens=40, stream=True, stream_options={"include_usage": True})
    )
    *parts, last, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert {part.id for part in chunks} == {chunks[0].id}


def test_several_answers_of_one_seed(server: Server) -> None:
    def draw(**more: Any) -> list[str]:
        reply = server.client.chat.completions.create(
            model="tiny", messages=ASK, n=3, seed=7, temperature=1, max_tokens=8, **more
        )
        if not more:
            assert [choice.index for choice in reply.choices] == [0, 1, 2]
            return [choice.message.content for choice in reply.choices]
        texts = ["", "", ""]
        for chunk in reply:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        return texts

    first = draw()
    assert draw() == first == draw(stream=True)
    assert len(set(first)) == 3


def test_stop_words_end_an_answer(server: Server) -> None:
    text = greedy(server, "tiny", "Hello", max_tokens=40).choices[0].message.content
    word = text[10:12]
    stopped = greedy(server, "tiny", "Hello", max_tokens=40, stop=[word])
    assert stopped.choices[0].message.content == text[: text.index(word)]
    assert stopped.choices[0].finish_reason == "stop"
    assert greedy(server, "tiny", "Hello", max_tokens=3).choices[0].finish_reason == "length"
    assert greedy(server, "tiny", "Hello", max_completion_tokens=5).usage.completion_tokens == 5


def test_log_probabilities_are_the_models(server: Server, tiny_qwen2: Path) -> None:
    reply = greedy(server, "tiny", "Hello", max_tokens=6, logprobs=True, top_logprobs=3)
    tokenizer = tiny.make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    prompt = Renderer(tokenizer).prompt([{"role": "user", "content": "Hello"}])
    written = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0].tolist()
    logprobs_TV = model(torch.tensor([written])).logits[0].log_softmax(-1)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens == len(written) - len(prompt)
    for place, token in enumerate(content, len(prompt)):
        row = logprobs_TV[place - 1]
        assert token.token == tokenizer.decode([written[place]])
        assert math.isclose(token.logprob, row[written[place]].item(), abs_tol=1e-3)
        assert [round(one.logprob, 2) for one in token.top_logprobs] == pytest.approx(
            row.topk(3).values.tolist(), abs=0.01
        )
    chunks = list(greedy(server, "tiny", "Hello", max_tokens=6, logprobs=True, top_logprobs=3, stream=True))
    streamed = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert streamed == content


def test_parts_of_characters_are_told_apart(server: Server) -> None:
    tokenizer = tiny.make_tokenizer()
    parts = tokenizer("😀").input_ids
    assert len(parts) > 1
    bias = {str(token): 100 for token in parts}
    chat = greedy(server, "tiny", "Hello", logit_bias=bias, logprobs=True, top_logprobs=3).choices[0]
    tokens = chat.logprobs.content
    assert {tuple(token.bytes) for token in tokens} <= {tuple(token_bytes(tokenizer, part)) for part in parts}
    ask: dict[str, Any] = {"prompt": "a", "temperature": 0, "max_tokens": 12, "logit_bias": bias, "logprobs": 20}
    plain = server.client.completions.create(model="tiny", **ask).choices[0].logprobs
    assert all(token.startswith("bytes:\\x") for token in plain.tokens)
    assert all(len(tops) == 20 for tops in plain.top_logprobs)


def test_plain_completions_go_on_from_texts_and_tokens(server: Server, tiny_qwen2: Path) -> None:
    tokenizer = tiny.make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    texts = ["The capital of", "def add("]
    expected = []
    for text in texts:
        ids = tokenizer(text).input_ids
        written = model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[0, len(ids) :]
        expected.append(tokenizer.decode(written, skip_special_tokens=True))
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 9}
    reply = server.client.completions.create(prompt=texts, **ask)
    assert [choice.text for choice in reply.choices] == expected
    by_ids = server.client.completions.create(prompt=tokenizer(texts[0]).input_ids, **ask)
    assert by_ids.choices[0].text == expected[0]
    chunks = list(server.client.completions.create(prompt=texts, stream=True, logprobs=2, **ask))
    for index, text in enumerate(expected):
        assert "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index) == text
    logged = server.client.completions.create(prompt=texts[0], logprobs=2, **ask).choices[0].logprobs
    assert len(logged.tokens) == len(logged.token_logprobs) == len(logged.top_logprobs) == len(logged.text_offset)


def test_tools_are_rendered_by_the_template(server: Server) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    messages: list[Any] = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    reply = server.client.chat.completions.create(model="tiny", messages=messages, tools=[tool], max_tokens=4)
    plain: list[Any] = [
        *ASK,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "content": "sunny"},
    ]
    assert reply.usage.prompt_tokens == len(Renderer(tiny.make_tokenizer()).prompt(plain, [tool]))
    without = server.client.chat.completions.create(
        model="tiny", messages=messages, tools=[tool], tool_choice="none", max_tokens=4
    )
    assert without.usage.prompt_tokens == len(Renderer(tiny.make_tokenizer()).prompt(plain))


def test_the_cache_answers_a_greedy_request_again(server: Server) -> None:
    def found() -> float:
        page = server.client.get("/../metrics", cast_to=str)
        return sum(float(line.split()[-1]) for line in page.splitlines() if 'cache_total{found="yes"}' in line)

    first, before = greedy(server, "tiny", "A question of its own", seed=1), found()
    again = greedy(server, "tiny", "A question of its own", seed=2)
    assert again.choices == first.choices
    assert again.usage == first.usage
    streamed = greedy(server, "tiny", "A question of its own", stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == first.choices[0].message.content
    assert found() == before + 2
    greedy(server, "code", "A question of its own")
    assert found() == before + 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "none"}, "no model 'none'"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "content"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, "there is room for 4095"),
        ({"max_tokens": 601}, "600 may be"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 9}, "8 may be"),
        ({"stop": ["a"] * 17}, "16 may be"),
        ({"stop": ""}, "stop"),
        ({"temperature": -1}, "temperature"),
        ({"logprobs": True, "top_logprobs": 21}, "20 may be"),
        ({"top_logprobs": 2}, "top_logprobs needs"),
        ({"logit_bias": {"99999999": 1}}, "no token's id"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(server: Server, more: dict[str, Any], said: str) -> None:
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 4} | more
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        server.client.chat.completions.create(**ask)
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]
