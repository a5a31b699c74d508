from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftune.data.render import Renderer
from swiftune.serve.schema import ChatMessage
from swiftune.serve.tool_calls import CallReader
from tests import tiny

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def read(text: str, cuts: list[int], wanted: bool = True) -> tuple[str, list[tuple[str, object]]]:
    reader, shown, start = CallReader(wanted), "", 0
    for cut in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        shown += reader.take(text[start:cut])
        start = cut
    rest, calls = reader.end()
    functions = [call["function"] for call in calls]
    return shown + rest, [(function["name"], json.loads(function["arguments"])) for function in functions]


@given(st.lists(st.integers(0, 200)))
def test_calls_are_found_however_the_answer_is_cut(cuts: list[int]) -> None:
    paris = ("weather", {"city": "Paris"})
    assert read(f"Let me look.{CALL}\n{CALL}", cuts) == ("Let me look.", [paris, paris])
    assert read(CALL.removesuffix("</tool_call>"), cuts) == ("", [paris])
    assert read(f"Let me look.{CALL}\n{CALL}\nDone <b>.", cuts) == ("Let me look.\n\nDone <b>.", [paris, paris])
    assert read(CALL, cuts, wanted=False) == (CALL, [])


@pytest.mark.parametrize(
    "text",
    [
        "a < b, <tool", "<tool_call>", "<tool_call>[]</tool_call>", "<tool_call>{</tool_call>", f"x{CALL}<tool_call>1",
        '<tool_call>{"name": 1}</tool_call>', '<tool_call>{"name": "a", "arguments": "b"}</tool_call>',
        '<tool_call>{"name": "\\ud800"}</tool_call>',
    ],
)  # fmt: skip
@given(cuts=st.lists(st.integers(0, 40)))
def test_what_is_no_call_stays_text(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == (text, [])


def test_a_template_is_given_the_call_that_a_message_answers() -> None:
    template = "{% for m in messages %}[{{ m.tool_call_id }}] {{ m.content }}{% endfor %}"
    message = ChatMessage(role="tool", content="Rain.", tool_call_id="call_7")
    tokenizer = tiny.make_tokenizer(template=template)
    assert tokenizer.decode(Renderer(tokenizer).prompt([message.plain()])).endswith("[call_7] Rain.")
