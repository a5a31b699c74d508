from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.data.formats import to_sample
from swiftune.data.ledger import RowFault
from swiftune.types import Place, RawRow, Sample

PLACE = Place("a.jsonl", 1)
U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
S, T = {"role": "system", "content": "Be kind."}, {"role": "tool", "content": "22"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def read(value: Any, columns: dict[str, str] | None = None, **options: bool) -> Sample:
    return to_sample(RawRow(PLACE, value), columns, **options)


GOOD: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello!"}, [U, A]),
    ("alpaca, no input", {"instruction": "Hi", "output": "Hello!"}, [U, A]),
    ("alpaca, null input", {"instruction": "Hi", "input": None, "output": "Hello!", "text": "all of it"}, [U, A]),
    ("alpaca, input only", {"instruction": "", "input": "Hi", "output": "Hello!"}, [U, A]),
    ("alpaca, zh input label", {"instruction": "Hi", "input": "输入：x", "output": "y"},
     [{"role": "user", "content": "Hi\nx"}, {"role": "assistant", "content": "y"}]),
    ("alpaca, translated", {"instruction_zh": "Hi", "input_zh": "", "output_zh": "Hello!"}, [U, A]),
    ("alpaca, system and history",
     {"instruction": "Hi", "input": "", "output": "Hello!", "system": "Be kind.", "history": [["Hi", "Hello!"]]},
     [S, U, A, U, A]),
    ("alpaca, csv history", {"instruction": "Hi", "output": "Hello!", "history": "[['Hi', 'Hello!']]"}, [U, A, U, A]),
    ("alpaca, response", {"instruction": "Hi", "input": "x", "response": "Hello!"},
     [{"role": "user", "content": "Hi\nx"}, A]),
    ("messages", {"messages": [S, U, A, U, A]}, [S, U, A, U, A]),
    ("messages with a column", {"messages": [U, A], "system": "Be kind."}, [S, U, A]),
    ("messages, the same system twice", {"messages": [S, U, A], "system": "Be kind."}, [S, U, A]),
    ("messages as text", {"messages": json.dumps([U, A])}, [U, A]),
    ("messages as Python text", {"messages": str([U, A])}, [U, A]),
    ("messages of parquet, with nulls",
     {"messages": [{**U, "tool_calls": None, "loss": None}, {**A, "tool_calls": None, "name": None}], "text": None},
     [U, A]),
    ("messages of parts",
     {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, A]},
     [U, A]),
    ("developer", {"messages": [{"role": "developer", "content": "Be kind."}, U, A]}, [S, U, A]),
    ("loss", {"messages": [U, {**A, "loss": False}, U, {**A, "loss": True}]},
     [U, {**A, "loss": False}, U, {**A, "loss": True}]),
    ("weight", {"messages": [U, {**A, "weight": 0}, U, {**A, "weight": 1.0}]},
     [U, {**A, "loss": False}, U, {**A, "loss": True}]),
    ("thinking", {"messages": [U, {"role": "assistant", "content": None, "reasoning_content": "Hm."}]},
     [U, {"role": "assistant", "content": "", "reasoning_content": "Hm."}]),
    ("what follows the last answer", {"messages": [U, A, U]}, [U, A]),
    ("two questions in a row", {"messages": [U, U, A]}, [U, U, A]),
    ("OpenAI tools",
     {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [
         {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]}, T, A]},
     [U, {**CALLING, "tool_calls": [{"id": "1", **CALL}]}, T, A]),
    ("ms-swift tools",
     {"messages": [U, {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
                   {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
                   {"role": "tool_response", "content": "22"}, {"role": "tool_response", "content": "22"}, A]},
     [U, {**CALLING, "tool_calls": [CALL, CALL]}, T, T, A]),
    ("ShareGPT",
     {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "Be kind."},
     [S, U, A]),
    ("ShareGPT roles", {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "user", "value": "Hi"},
                                          {"from": "Assistant", "value": "Hello!"}]}, [S, U, A]),
    ("ShareGPT tools",
     {"conversations": [{"from": "human", "value": "Hi"},
                        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
                        {"from": "observation", "value": "22"}, {"from": "gpt", "value": "Hello!"}]},
     [U, CALLING, T, A]),
    ("ShareGPT pairs",
     {"conversation": [{"human": "Hi", "assistant": "Hello!"}, {"assistant": "Hello!", "human": "Hi"}]}, [U, A, U, A]),
    ("ShareGPT pairs with a system", {"conversation": [{"system": "Be kind.", "human": "Hi", "assistant": "Hello!"}]},
     [S, U, A]),
    ("query", {"query": "Hi", "response": "Hello!"}, [U, A]),
    ("query with history", {"query": "Hi", "response": "Hello!", "history": [("Hi", "Hello!")]}, [U, A, U, A]),
    ("query, empty history", {"query": "Hi", "response": "Hello!", "history": "", "system": None}, [U, A]),
    ("prompt", {"prompt": "Hi", "completion": "Hello!"}, [U, A]),
    ("prompt of messages", {"prompt": [S, U], "completion": [A]}, [S, U, A]),
    ("question", {"question": "Hi", "answer": "Hello!", "id": 7}, [U, A]),
    ("problem", {"problem": "Hi", "solution": "Hello!"}, [U, A]),
    ("input", {"input": "Hi", "output": "Hello!"}, [U, A]),
    ("text", {"text": "Hello!"}, [A]),
    ("raw messages", {"messages": [A]}, [A]),
    ("raw response", {"response": "Hello!"}, [A]),
    ("parquet union", {"text": None, "messages": None, "query": "Hi", "response": "Hello!"}, [U, A]),
    ("preference, ShareGPT",
     {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello!"},
      "rejected": {"from": "gpt", "value": "No."}}, [U, A]),
    ("preference, prompt", {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}, [U, A]),
    ("preference, alpaca",
     {"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "No.", "system": "Be kind."}, [S, U, A]),
    ("preference, whole", {"chosen": [U, A], "rejected": [U, T], "prompt": "Hi"}, [U, A]),
    ("preference, ms-swift", {"messages": [U, A], "rejected_response": "No."}, [U, A]),
    ("KTO", {"messages": [U, A], "label": False}, [U, A]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "messages"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_formats(value: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    before = json.dumps(value)
    assert replace(read(value), label=None) == Sample(messages=messages, place=PLACE)
    assert json.dumps(value) == before, "the row read is not changed"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"messages": [U, A]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x"}]}, "conversations"),
        ({"instruction": "Hi", "output": "x"}, "alpaca"),
        ({"question": "Hi", "answer": "x"}, "query, response"),
        ({"prompt": "Hi", "chosen": "x", "rejected": "y"}, "preference"),
        ({"text": "x"}, "text"),
    ],
)
def test_the_layout_that_was_recognised_has_a_name(value: dict[str, Any], named: str) -> None:
    assert read(value).format == named


@pytest.mark.parametrize(
    ("value", "named"),
    [("chat", "chat"), (True, "true"), (3, "3"), (0.5, "0.5"), ("", None), (None, None), ([1], None), (1e300, None)],
)
def test_the_class_of_a_row(value: Any, named: str | None) -> None:
    sample = read({"query": "Hi", "response": "x", "channel": value, "label": value})
    assert (sample.channel, sample.label) == (named, named)


def test_a_class_that_is_no_unicode_does_not_make_the_row_unusable() -> None:
    assert read({"query": "Hi", "response": "x", "channel": "half \ud800"}).channel == "half ?"


BAD = [
    ("not a row", ["a"], "not an object with columns", "a list of 1"),
    ("unknown columns", {"frage": "Hi", "antwort": "x"}, "unknown columns", "frage, antwort"),
    ("no columns", {}, "unknown columns", "none"),
    ("no answer column", {"instruction": "Hi", "input": ""}, "no column with an answer", "instruction, input"),
    ("null answer", {"instruction": "Hi", "output": None}, "null where text should be", "output is null"),
    ("null question", {"query": None, "response": "x"}, "null where text should be", "query is null"),
    ("null answer beside the whole text", {"instruction": "Hi", "input": "x", "output": None, "text": "Hi x"},
     "null where text should be", "output is null"),
    ("a question beside text", {"prompt": "Hi", "text": "x"}, "no column with an answer", "prompt, text"),
    ("number", {"question": "6 × 7?", "answer": 42}, "a number where text should be", "the number 42"),
    ("boolean", {"query": "Hi", "response": True}, "a number where text should be", "the value true"),
    ("list", {"query": "Hi", "response": ["x", "y"]}, "a list where text should be", "a list of 2"),
    ("object", {"query": {"a": 1}, "response": "x"}, "an object where text should be", "an object with a"),
    ("null content", {"messages": [U, {**A, "content": None}]}, "null where text should be", "message 2"),
    ("no content", {"messages": [U, {"role": "assistant"}]}, "null where text should be", "message 2"),
    ("no assistant", {"messages": [S, U]}, "no assistant turn", "system, user"),
    ("no messages", {"messages": []}, "no assistant turn", "none"),
    ("messages null", {"messages": None}, "messages that are no list of objects", "messages is null"),
    ("messages text", {"messages": "Hi"}, "messages that are no list of objects", "the text 'Hi'"),
    ("a message of text", {"messages": ["Hi", "Hello!"]}, "messages that are no list of objects", "message 1"),
    ("a message of nothing", {"messages": [{}]}, "a message without role and content", "message 1"),
    ("empty answer", {"query": "Hi", "response": " \n"}, "empty answer", "message 2"),
    ("empty answer inside", {"messages": [U, {**A, "content": ""}, U, A]}, "empty answer", "message 2"),
    ("empty text", {"text": ""}, "empty answer", "message 1"),
    ("unknown role", {"messages": [{"role": "narrator", "content": "x"}, A]}, "unknown role", "narrator"),
    ("role number", {"messages": [{"role": 1, "content": "x"}, A]}, "a number where text should be", "message 1, role"),
    ("loose tool", {"messages": [U, T, A]}, "a tool result that follows no assistant turn", "message 2, after user"),
    ("image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, A]},
     "a message that holds more than text", "image_url"),
    ("history", {"query": "Hi", "response": "x", "history": [["a"]]},
     "history that is no list of [question, answer] pairs", "turn 1 is a list of 1"),
    ("history text", {"query": "Hi", "response": "x", "history": "yes"},
     "history that is no list of [question, answer] pairs", "the text 'yes'"),
    ("history null", {"query": "Hi", "response": "x", "history": [["a", None]]}, "null where text should be", "turn 1"),
    ("loss", {"messages": [U, {**A, "loss": "no"}]}, "a loss mark that is neither true nor false", "'no'"),
    ("system number", {"query": "Hi", "response": "x", "system": 5}, "a number where text should be", "system"),
    ("two systems", {"messages": [S, U, A], "system": "Be rude."}, "two different system prompts", "column"),
    ("tools", {"messages": [U, A], "tools": "a hammer"}, "tools that are no list of functions", "hammer"),
    ("tool call", {"messages": [U, {"role": "tool_call", "content": "x"}]}, "a tool call that cannot be read", "2"),
    ("surrogate", {"query": "\ud800", "response": "x"}, "text that is not valid Unicode", "character 0"),
    ("surrogate in a tool", {"messages": [U, A], "tools": [{"name": "\ud800"}]}, "text that is not valid Unicode", ""),
    ("chosen alone", {"chosen": "x", "rejected": "y"}, "an answer without a question", "chosen, rejected"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "reason", "detail"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_faults(value: Any, reason: str, detail: str) -> None:
    with pytest.raises(RowFault) as caught:
        read(value)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], [json.dumps(TOOL)], TOOL])
def test_tools(tools: Any) -> None:
    assert read({"messages": [U, A], "tools": tools}).tools == [TOOL]


@pytest.mark.parametrize("tools", [None, "", "[]", [], {}])
def test_no_tools(tools: Any) -> None:
    assert read({"messages": [U, A], "tools": tools}).tools is None


def test_columns_are_mapped() -> None:
    columns = {"frage": "query", "antwort": "response", "response": "old"}
    assert read({"frage": "Hi", "antwort": "Hello!", "response": "Other"}, columns).messages == [U, A]
    assert read({"antwort": "query", "frage": "response"} | {"antwort": "Hi", "frage": "Hello!"},
                {"antwort": "query", "frage": "response"}).messages == [U, A]  # fmt: skip
    with pytest.raises(RowFault, match="unknown columns"):
        read({"text": "x"}, {"text": "elsewhere"})


@pytest.mark.parametrize("value", [{"query": "Hi"}, {"instruction": "Hi", "input": ""}, {"messages": [U]}])
def test_prompts_without_an_answer_where_none_is_needed(value: Any) -> None:
    assert read(value, needs_answer=False).messages == [U]
    with pytest.raises(RowFault):
        read(value)


NAMES = sorted({key for case in GOOD for key in case[1]} | {"role", "content", "from", "value", "name", "arguments"})
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "tool_call", "function_call", "gpt", "narrator"])
LEAF = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | ROLES
    | st.sampled_from(["[", "[]", "{}", '{"name": "f"}', "[['a', 'b']]", "{1: {2}}", "b'x'", "\ud800"])
)  # fmt: skip
ANYTHING = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
        | st.fixed_dictionaries({"role": ROLES, "content": inner}, optional={"tool_calls": inner, "loss": inner})
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=5) | ANYTHING, st.booleans())
@settings(max_examples=500, deadline=None)
def test_a_row_is_a_sample_or_a_row_fault(value: Any, needs_answer: bool) -> None:
    try:
        sample = read(value, needs_answer=needs_answer)
    except RowFault:
        return
    assert sample.messages
    assert {message["role"] for message in sample.messages} <= {"system", "user", "assistant", "tool"}
    assert all(isinstance(message["content"], str) for message in sample.messages)
    if needs_answer:
        assert sample.messages[-1]["role"] == "assistant"
    json.dumps([sample.messages, sample.tools], ensure_ascii=False).encode()
