"""Messages in the spellings met in data sets, to the one that chat templates take."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from swiftune.data.ledger import RowFault
from swiftune.types import Message

BAD_MESSAGES = "messages that are no list of objects"
BAD_MESSAGE = "a message without role and content"
UNKNOWN_ROLE = "unknown role"
NOT_ONLY_TEXT = "a message that holds more than text"
BAD_LOSS = "a loss mark that is neither true nor false"
BAD_TOOL_CALL = "a tool call that cannot be read"
BAD_TOOLS = "tools that are no list of functions"

_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("tool_call", "function_call"), "call"),
}
_PAIR_ORDER = ("system", "human", "user", "tool", "assistant", "gpt", "bot")


def kind(value: Any) -> str:
    """What a value is, for a message: ``null``, ``the number 3``, ``a list of 2`` …"""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}" if abs(value) < 1e12 or value != value else "a number"
    if isinstance(value, str):
        return f"the text {value[:40]!r}{'…' if len(value) > 40 else ''}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:6])) or 'nothing in it'}"
    return f"a {type(value).__name__}"


def text(value: Any, where: str) -> str:
    """The value, if it is text.

    Raises:
        RowFault: it is something else; the reason names what.
        UnicodeEncodeError: it holds half a surrogate pair.
    """
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
        return value
    what = "a value"
    for types, name in (((int, float), "a number"), ((list, tuple), "a list"), ((dict,), "an object")):
        if isinstance(value, types):
            what = name
    what = "null" if value is None else what
    raise RowFault(f"{what} where text should be", f"{where} is {kind(value)}")


def optional_text(row: Mapping[str, Any], column: str) -> str:
    """The text of a column that may be missing or null."""
    value = row.get(column)
    return "" if value is None else text(value, column)


def parsed(value: str) -> Any:
    """What a column of a CSV file holds as JSON, or as Python writes it; the text itself where it is neither."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes
            return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def read_messages(value: Any, column: str) -> list[Message]:
    """A list of messages, of any spelling, in order; consecutive tool calls become one assistant message."""
    value = parsed(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise RowFault(BAD_MESSAGES, f"{column} is {kind(value)}")
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        where = f"{column}, message {number}"
        if not isinstance(item, dict):
            raise RowFault(BAD_MESSAGES, f"{where} is {kind(item)}")
        for message in _read_item(item, where):
            calls = message.get("tool_calls")
            if calls and "role" in item and _role(item["role"], where) == "call" and messages:
                last = messages[-1]
                if last["role"] == "assistant" and ("tool_calls" in last or not last["content"]):
                    last["tool_calls"] = [*last.get("tool_calls", []), *calls]
                    continue
            messages.append(message)
    return messages


def _read_item(item: dict[str, Any], where: str) -> list[Message]:
    role = item.get("role", item.get("from"))
    if role is not None:
        return [_read_message(item, _role(role, where), where)]
    turns = [key for key in _PAIR_ORDER if item.get(key) is not None]
    if not turns:
        raise RowFault(BAD_MESSAGE, f"{where} is {kind(item)}")
    return [{"role": _ROLES[key], "content": _content(item[key], f"{where}, {key}")} for key in turns]


def _role(role: Any, where: str) -> str:
    name = _ROLES.get(text(role, f"{where}, role").strip().lower())
    if name is None:
        raise RowFault(UNKNOWN_ROLE, f"{where}: {role[:40]!r}; known: {', '.join(_ROLES)}")
    return name


def _read_message(item: dict[str, Any], role: str, where: str) -> Message:
    content = item.get("content", item.get("value"))
    if role == "call":
        calls = parsed(content) if isinstance(content, str) else content
        message = Message(role="assistant", content="", tool_calls=_tool_calls(calls, where))
    else:
        calls = item.get("tool_calls") if role == "assistant" else None
        said = item.get("reasoning_content") if role == "assistant" else None
        missing = content is None and bool(calls or said)
        message = Message(role=role, content="" if missing else _content(content, where))
        if calls:
            message["tool_calls"] = _tool_calls(parsed(calls) if isinstance(calls, str) else calls, where)
        if said:
            message["reasoning_content"] = text(said, f"{where}, reasoning_content")
    if item.get("name"):
        message["name"] = text(item["name"], f"{where}, name")
    for column in ("loss", "weight"):  # OpenAI's word for it is weight, 0 or 1
        if message["role"] == "assistant" and item.get(column) is not None:
            if item[column] not in (0, 1):
                raise RowFault(BAD_LOSS, f"{where}, {column} is {kind(item[column])}")
            message["loss"] = bool(item[column])
    return message


def _content(value: Any, where: str) -> str:
    """Text, or a list of text parts, which are joined."""
    if not isinstance(value, list):
        return text(value, where)
    parts = []
    for number, part in enumerate(value, 1):
        if isinstance(part, dict) and part.get("text") is None:
            raise RowFault(NOT_ONLY_TEXT, f"{where}, part {number} is {kind(part.get('type', part))}")
        parts.append(text(part["text"] if isinstance(part, dict) else part, f"{where}, part {number}"))
    return "".join(parts)


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as templates take them: ``{"type": "function", "function": {"name": …, "arguments": {…}}}``."""
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowFault(BAD_TOOL_CALL, f"{where}: {kind(call)}")
        arguments = function.get("arguments", function.get("parameters")) or {}
        arguments = parsed(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            raise RowFault(BAD_TOOL_CALL, f"{where}, arguments: {kind(arguments)}")
        function = {"name": function["name"], "arguments": arguments}
        extra = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append(_plain({**extra, "type": "function", "function": function}, BAD_TOOL_CALL, where))
    if not calls:
        raise RowFault(BAD_TOOL_CALL, f"{where}: an empty list")
    return calls


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """The ``tools`` of a row: a list (or its JSON text) of functions, each an object or JSON text; None for none."""
    value = parsed(value) if isinstance(value, str) and value.strip() else value
    if value is None or value in ("", [], {}):
        return None
    tools = []
    for item in value if isinstance(value, list) else [value]:
        tool = parsed(item) if isinstance(item, str) else item
        if not isinstance(tool, dict) or not isinstance(tool.get("function", tool), dict):
            raise RowFault(BAD_TOOLS, f"tools: {kind(tool)}")
        tools.append(_plain(tool if "function" in tool else {"type": "function", "function": tool}, BAD_TOOLS, "tools"))
    return tools


def _plain(value: dict[str, Any], reason: str, where: str) -> dict[str, Any]:
    """The value as JSON has it: parquet and Python literals may hold dates, bytes, sets."""
    try:
        written = json.dumps(value, ensure_ascii=False)
        written.encode()
    except TypeError as error:
        raise RowFault(reason, f"{where}: {error}") from None
    plain: dict[str, Any] = json.loads(written)
    return plain
