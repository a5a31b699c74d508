"""A row as its file has it, to a ``Sample``: the format is recognised row by row, by its columns.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "…"}
{"conversation": [{"human": "Hi", "assistant": "Hello!"}]}
{"instruction": "Translate.", "input": "Hi", "output": "Bonjour", "history": [["…", "…"]]}
{"query": "Hi", "response": "Hello!"}      also prompt / completion, question / answer …
{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}      the chosen answer
{"text": "Raw text to go on with."}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from swiftune.data.ledger import RowFault
from swiftune.data.messages import (
    kind,
    optional_text,
    parsed,
    read_messages,
    read_tools,
    text,
)
from swiftune.types import Message, RawRow, Sample

NOT_A_ROW = "not an object with columns"
UNKNOWN_COLUMNS = "unknown columns"
NO_ANSWER_COLUMN = "no column with an answer"
COLUMN_CLASH = "two columns for one thing"
NO_QUESTION = "an answer without a question"
NO_ASSISTANT = "no assistant turn"
EMPTY_ANSWER = "empty answer"
LOOSE_TOOL = "a tool result that follows no assistant turn"
TWO_SYSTEMS = "two different system prompts"
BAD_HISTORY = "history that is no list of [question, answer] pairs"
NOT_UNICODE = "text that is not valid Unicode"

KNOWN = (
    "messages; conversations; conversation; instruction, input, output; query, response; prompt, completion; "
    "question, answer; prompt, chosen; text"
)

_CONVERSATIONS = ("messages", "conversations", "conversation")
_QUESTIONS = ("query", "prompt", "question", "input", "problem")
_ANSWERS = ("response", "completion", "answer", "output", "solution")
_CLASS = 100
"""Characters of a class's name that count."""
_LOCALISED = ("instruction", "input", "output")

Columns = Mapping[str, Any]
Reader = tuple[str, Callable[[Columns], list[Message]]]
"""The name of a layout, and what reads it."""


def to_sample(raw: RawRow, columns: Mapping[str, str] | None = None, *, needs_answer: bool = True) -> Sample:
    """The row as a sample.

    Args:
        raw: what the source read.
        columns: ``--columns``: from names in the file to names known here.
        needs_answer: False takes rows without an assistant turn, too (prompts to be answered).

    Raises:
        RowFault: the row cannot be used; nothing else is ever raised, whatever the row holds.
    """
    try:
        return _to_sample(raw, columns or {}, needs_answer)
    except UnicodeEncodeError as error:
        raise RowFault(NOT_UNICODE, f"half a surrogate pair at character {error.start}") from None
    except RecursionError:
        raise RowFault(NOT_A_ROW, "nested too deeply") from None


def _to_sample(raw: RawRow, columns: Mapping[str, str], needs_answer: bool) -> Sample:
    row = _rename(raw.value, columns)
    format_, reader = _recognise(row, needs_answer)
    messages = reader(row)
    system = optional_text(row, "system") or optional_text(row, "system_prompt")
    if system:
        if messages and messages[0]["role"] == "system":
            if messages[0]["content"] != system:
                raise RowFault(TWO_SYSTEMS, "one in the column, one in the messages")
        else:
            messages.insert(0, {"role": "system", "content": system})
    _check(messages, needs_answer)
    return Sample(
        messages=messages,
        place=raw.place,
        tools=read_tools(row.get("tools")),
        format=format_,
        channel=_class(row.get("channel")),
        label=_class(row.get("label")),
    )


def _class(value: Any) -> str | None:
    """The class that a column puts the row into. Values that cannot name one put it into none."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()[:_CLASS] or None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) and abs(value) < 1e18 else None


def _rename(value: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowFault(NOT_A_ROW, f"it is {kind(value)}")
    row = {key: item for key, item in value.items() if key not in columns}
    for old, new in columns.items():
        if old in value:
            row[new] = value[old]
    # Translated sets keep the columns apart as instruction_zh, input_zh, output_zh.
    for name in _LOCALISED:
        if name not in row and f"{name}_zh" in row:
            row[name] = row[f"{name}_zh"]
    return row


# Recognition.


def _recognise(row: Columns, needs_answer: bool) -> Reader:
    """The reader of the row's format. A column that is there but null counts only where no other format fits."""
    present = {key for key, value in row.items() if value is not None}
    found = _reader(present, needs_answer) or _reader(set(row), needs_answer)
    if found:
        return found
    seen = ", ".join(str(key) for key in row) or "none"
    raw = next((key for key in ("text", "response") if key in row), None)
    questions = {"instruction", *_QUESTIONS} & set(row)
    if raw and not questions:  # not even an empty column for a question
        return "text", lambda row: [{"role": "assistant", "content": text(row[raw], raw)}]
    if questions:
        raise RowFault(NO_ANSWER_COLUMN, f"columns: {seen}; read as answer: {', '.join(_ANSWERS)}")
    raise RowFault(UNKNOWN_COLUMNS, f"columns: {seen}; known: {KNOWN}; map others with --columns")


def _reader(keys: set[Any], needs_answer: bool) -> Reader | None:
    conversation = next((key for key in _CONVERSATIONS if key in keys), None)
    if "chosen" in keys:
        return "preference", _preference
    if conversation:
        return conversation, lambda row: read_messages(row[conversation], conversation)
    answer = next((key for key in _ANSWERS if key in keys), None)
    question = next((key for key in _QUESTIONS if key in keys and key != answer), None)
    if "instruction" in keys and (answer or not needs_answer):
        # With an answer under another name, "input" is still alpaca's input.
        return "alpaca", lambda row: _alpaca(row, "output" if "output" in keys else answer)
    if question and (answer or not needs_answer):
        return "query, response", lambda row: _pair(row, question, answer)
    return None


# Readers. Each returns the messages without the row's own system prompt.


def _alpaca(row: Columns, answer: str | None) -> list[Message]:
    instruction = text(row["instruction"], "instruction")
    # Some rows of alpaca-gpt4-data-zh label their input with the word for it; ms-swift drops that, too.
    context = optional_text(row, "input").removeprefix("输入：")
    question = f"{instruction}\n{context}" if instruction and context else instruction or context
    return _turn(row, question, answer)


def _pair(row: Columns, question: str, answer: str | None) -> list[Message]:
    if isinstance(row[question], list):  # prompt and completion as lists of messages
        messages = read_messages(row[question], question)
        return messages + _answer(row, answer) if answer else messages
    return _turn(row, text(row[question], question), answer)


def _turn(row: Columns, question: str, answer: str | None) -> list[Message]:
    messages = _history(row.get("history"))
    messages.append({"role": "user", "content": question})
    return messages + _answer(row, answer) if answer else messages


def _answer(row: Columns, column: str) -> list[Message]:
    """A column with an answer: text, a message, or a list of messages."""
    value = row[column]
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return read_messages(value, column)
    return [{"role": "assistant", "content": text(value, column)}]


def _preference(row: Columns) -> list[Message]:
    """Preference data in supervised training: the chosen answer, as if there were no other."""
    answer = _answer(row, "chosen")
    if any(message["role"] == "user" for message in answer):  # the whole conversation is in the column
        return answer
    others = {key for key, value in row.items() if value is not None and key not in _ANSWERS and key != "output"}
    reader = _reader(others - {"chosen"}, needs_answer=False)
    if reader is None:
        raise RowFault(NO_QUESTION, f"columns: {', '.join(str(key) for key in row)}")
    return reader[1](row) + answer


def _history(value: Any) -> list[Message]:
    turns = parsed(value) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(turns, list):
        raise RowFault(BAD_HISTORY, f"it is {kind(value)}")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise RowFault(BAD_HISTORY, f"turn {number} is {kind(turn)}")
        messages.append({"role": "user", "content": text(turn[0], f"history, turn {number}, question")})
        messages.append({"role": "assistant", "content": text(turn[1], f"history, turn {number}, answer")})
    return messages


def _check(messages: list[Message], needs_answer: bool) -> None:
    """What no template could make sense of. The rest is for the template to render or refuse."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if not messages or (needs_answer and not answers):
        raise RowFault(NO_ASSISTANT, f"roles: {', '.join(message['role'] for message in messages) or 'none'}")
    for number, message in enumerate(messages, 1):
        before = messages[number - 2]["role"] if number > 1 else ""
        if message["role"] == "tool" and before not in ("assistant", "tool"):
            raise RowFault(LOOSE_TOOL, f"message {number}, after {before or 'nothing'}")
        if message["role"] == "assistant" and needs_answer and message.get("loss") is not False:
            said = message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content")
            if not said:
                raise RowFault(EMPTY_ANSWER, f"message {number}")
    if needs_answer:  # what follows the last answer is never learned from, and may change how templates render it
        while messages[-1]["role"] != "assistant":
            messages.pop()
