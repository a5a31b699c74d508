"""Reading questions of one line or several from a terminal."""

from __future__ import annotations

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

_BLOCK = '"""'


class Keyboard:
    """A line editor with a history. Enter ends a question, unless the text says that more is to come."""

    def __init__(self) -> None:
        self.until_hash = False
        """Questions go on until a ``#`` at the end of a line (ms-swift's ``multi-line``)."""
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if more_to_come(buffer.text, until_hash=self.until_hash):
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            key_bindings=keys,
            prompt_continuation="... ",
            output=create_output(always_prefer_tty=True),  # stdout may be a file that wants the answers only
        )

    def read(self) -> str:
        """The next question. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        return question(self._session.prompt(">>> "), until_hash=self.until_hash)


def more_to_come(text: str, *, until_hash: bool) -> bool:
    """Whether Enter continues ``text`` on a new line."""
    text = text.strip()
    if until_hash:
        return not text.endswith("#") and text not in ("/single", "single-line", "/exit", "exit")
    if text.startswith(_BLOCK):
        return len(text) < 2 * len(_BLOCK) or not text.endswith(_BLOCK)
    return text.endswith("\\")


def question(text: str, *, until_hash: bool) -> str:
    """What was meant, without the marks that kept the text open."""
    text = text.strip()
    if until_hash:
        return text.removesuffix("#").rstrip()
    if text.startswith(_BLOCK):
        return text.removeprefix(_BLOCK).removesuffix(_BLOCK).strip("\n")
    return text.replace("\\\n", "\n")
