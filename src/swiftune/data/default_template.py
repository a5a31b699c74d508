"""A chat template that says by itself what a run said by flags: its system prompt, and the variables it was given.

An exported model is rendered by programs that know nothing of the run. What ``ChatText`` does around the template is
put before it here, in the template's own language.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_SYSTEM = "not messages or messages[0]['role'] != 'system'"
_FOLD = (
    "{%- if messages and messages[0]['role'] == 'system' and messages|length > 1 and messages[1]['role'] == 'user' %}"
    "{%- set messages = [dict(messages[1], content=(messages[0]['content'] ~ '\\n\\n' ~ messages[1]['content'])|trim)]"
    " + messages[2:] %}"
    "{%- endif %}"
)


def with_defaults(template: str, system: str | None, variables: Mapping[str, Any], *, folds_system: bool) -> str:
    """The template with defaults of its own.

    Args:
        system: the system prompt of conversations that have none; None leaves it to the template.
        variables: for the template, where whoever renders gives no other value.
        folds_system: the template has no system role: the system prompt goes before the first user message.
    """
    parts = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in variables.items()
    ]
    if system is not None:
        message = f"{{'role': 'system', 'content': {_literal(system)}}}"
        parts.append(f"{{%- if {_NO_SYSTEM} %}}{{%- set messages = [{message}] + messages %}}{{%- endif %}}")
    if folds_system:
        parts.append(_FOLD)
    # Transformers drops a line's end behind a tag, so one that the template begins with has to stand twice.
    return "".join(parts) + ("\n" if parts and template.startswith("\n") else "") + template


def _literal(value: Any) -> str:
    """A value in jinja's notation: Python's, which ``ascii`` writes in one line of plain characters."""
    return str(value).lower() if isinstance(value, bool) else ascii(value)
