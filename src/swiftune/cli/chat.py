"""``swift infer`` without a data set: a chat in the terminal, or one question a line from a pipe."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from swiftune.errors import Interrupted, UsageError
from swiftune.runtime.console import err
from swiftune.runtime.stop import Terminated, exit_code, heed

if TYPE_CHECKING:
    from swiftune.cli.keyboard import Keyboard
    from swiftune.config import InferArguments
    from swiftune.generate.conversation import Conversation

HELP = """\
/clear          forget what was said
/system [text]  show the system prompt, or set another one (and start anew)
/multi, /single questions of several lines that end with #, or of one line
/exit           leave (also: exit, quit, Ctrl-D)
Several lines: Alt-Enter, a \\ at the end of a line, or a block between lines of \"""
Ctrl-C stops an answer; at the prompt, twice leaves."""

# What ms-swift calls them.
_ALIASES = {
    "exit": "/exit",
    "quit": "/exit",
    "/quit": "/exit",
    "clear": "/clear",
    "multi-line": "/multi",
    "single-line": "/single",
}


def infer(args: InferArguments) -> None:
    """The command."""
    from swiftune.recipes.infer import infer

    infer(args, talk)


def talk(conversation: Conversation, stream: bool) -> None:
    """Chats until the user leaves, or answers each line of a piped stdin on stdout, where nothing else is written.

    Raises:
        Interrupted: Ctrl-C or SIGTERM while a pipe is answered.
    """
    if sys.stdin.isatty():
        _talk_in_terminal(conversation, stream)
    else:
        _answer_lines(conversation, stream)


def _talk_in_terminal(conversation: Conversation, stream: bool) -> None:
    from swiftune.cli.keyboard import Keyboard

    err().print("Ask something. /help tells what else can be typed.", style="dim")
    keyboard = Keyboard()
    stopped = False
    """The last thing the user did was to press Ctrl-C."""
    while True:
        try:
            text = keyboard.read()
            stopped = False
            if _command(text, conversation, keyboard) or not text:
                continue
            _answer(conversation, text, stream)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if stopped:
                return
            stopped = True
            heed()
            err().print("\nStopped. Ctrl-C again leaves.", style="dim")
        except EOFError:
            return
        except UsageError as error:
            err().print(str(error), style="yellow", markup=False)


def _answer_lines(conversation: Conversation, stream: bool) -> None:
    try:
        for line in sys.stdin:
            text = line.strip()
            if text and not _command(text, conversation, None):
                _answer(conversation, text, stream)
    except EOFError:
        return
    except KeyboardInterrupt as asked:
        stopped = Interrupted("Stopped.")
        stopped.exit_code = exit_code(asked)
        raise stopped from None


def _answer(conversation: Conversation, text: str, stream: bool) -> None:
    with closing(conversation.ask(text)) as pieces:
        for piece in pieces if stream else ["".join(pieces)]:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _command(text: str, conversation: Conversation, keyboard: Keyboard | None) -> bool:
    """Carries out ``text`` if it is a command. Raises EOFError for the one that leaves."""
    word, _, rest = text.partition(" ")
    command = _ALIASES.get(text, word)
    if command == "/exit":
        raise EOFError
    if command == "/clear":
        conversation.clear()
        err().print("Forgotten.", style="dim")
    elif command == "/system":
        if rest.strip():
            conversation.system = rest.strip()
        system = conversation.system or "the template's own"
        err().print(f"System prompt: {system}", style="dim", markup=False)
    elif command in ("/multi", "/single") and keyboard is not None:
        keyboard.until_hash = command == "/multi"
    elif command == "/help":
        err().print(HELP, style="dim", markup=False)
    elif keyboard is not None and not rest and text.startswith("/"):
        err().print(f"There is no {text}; /help lists what there is.", style="dim", markup=False)
    else:
        return False
    return True
