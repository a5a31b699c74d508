"""An exported template renders without flags what ours renders with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.data.render import Renderer
from swiftune.types import Message
from tests import tiny

NO_SYSTEM = (
    "\n\n{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = "{% if enable_thinking|default(true) %}Think. {% else %}Hurry. {% endif %}" + tiny.QWEN2_TEMPLATE
TEMPLATES = {"qwen2.5": None, "qwen2": tiny.QWEN2_TEMPLATE, "no system role": NO_SYSTEM, "thinking": THINKING}

CHATS: list[list[Message]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": " c "}],
]


def same(template: str | None, system: str | None, variables: dict[str, Any], messages: list[Message]) -> None:
    tokenizer = tiny.make_tokenizer("qwen2", template)
    renderer = Renderer(tokenizer, system=system, template_kwargs=variables)
    elsewhere = tiny.make_tokenizer("qwen2", str(renderer.exported_template))
    ids = elsewhere.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == renderer.prompt(messages)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
@pytest.mark.parametrize("system", [None, "", "Be brief.", "{{ x }} {% y %} {# z #} %} 'a' \"b\"\\\n\t谢谢 😀\r\n"])
@pytest.mark.parametrize("messages", CHATS)
def test_the_default_prompt(template: str | None, system: str | None, messages: list[Message]) -> None:
    same(template, system, {}, messages)


@pytest.mark.parametrize("thinking", [True, False])
def test_variables(thinking: bool) -> None:
    same(THINKING, "Be brief.", {"enable_thinking": thinking}, CHATS[0])


@settings(max_examples=25, deadline=None)
@given(system=st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_prompt(system: str) -> None:
    same(None, system, {}, CHATS[0])


def test_without_anything_to_say_the_template_stays_as_it_is() -> None:
    tokenizer = tiny.make_tokenizer("qwen2")
    assert Renderer(tokenizer).exported_template == tokenizer.chat_template
