"""Calls of tools in an answer, in the form that Hermes, Qwen 2.5 and Qwen 3 write them::

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Other forms stay what they are: text.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

MARK = "<tool_call>"
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)


class CallReader:
    """Takes an answer in pieces, gives its text before the first call; at the end the calls, and the text beside them.

    Args:
        wanted: whether the request offers tools, and the template writes calls in this form.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted, self._kept = wanted, ""

    def take(self, piece: str) -> str:
        """The text that cannot belong to a call."""
        if not self._wanted:
            return piece
        self._kept += piece
        begins = self._kept.find(MARK)
        if begins < 0:
            begins = len(self._kept) - next(
                (n for n in range(min(len(MARK) - 1, len(self._kept)), 0, -1) if self._kept.endswith(MARK[:n])), 0
            )
        shown, self._kept = self._kept[:begins], self._kept[begins:]
        return shown

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """What is left as text, and the calls. Where one cannot be read, all of it is text."""
        kept, self._kept = self._kept, ""
        calls = [_call(written) for written in _CALL.findall(kept)]
        found = [call for call in calls if call is not None]
        if not found or len(found) < len(calls):
            return kept, []
        rest = _CALL.sub("", kept)
        return rest if rest.strip() else "", found


def _call(written: str) -> dict[str, Any] | None:
    try:
        call = json.loads(written)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    try:
        "".join(function.values()).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON may spell
        return None
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
