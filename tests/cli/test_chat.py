"""``swift infer`` as it is typed and piped into."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from swiftune.cli.main import main
from swiftune.config import InferArguments
from swiftune.generate.conversation import Conversation
from swiftune.recipes.infer import infer

SWIFT = [sys.executable, "-m", "swiftune.cli.main", "infer"]
GREEDY = ["--temperature", "0", "--repetition_penalty", "1.5", "--max_new_tokens", "12"]


def environment(tmp_path: Path) -> dict[str, str]:
    # pexpect is a terminal that cannot say where its cursor is (CPR).
    ours = {"SWIFTUNE_CACHE": str(tmp_path / "cache"), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    return {**os.environ, "OMP_NUM_THREADS": "1", **ours}


def expected(folder: Path, questions: list[str]) -> list[str]:
    answers: list[str] = []

    def talk(conversation: Conversation, _: bool) -> None:
        answers.extend("".join(conversation.ask(question)) for question in questions)

    infer(InferArguments(model=str(folder), temperature=0, repetition_penalty=1.5, max_new_tokens=12), talk)
    return answers


def test_piped_lines_are_answered_on_stdout_alone(tiny_qwen2: Path, tmp_path: Path) -> None:
    first, second = expected(tiny_qwen2, ["Who are you?", "你好"])
    assert "\n" not in first + second
    done = subprocess.run(
        [*SWIFT, "--model", str(tiny_qwen2), *GREEDY],
        input="Who are you?\n\n你好\n/clear\nWho are you?\n/help\n/exit\nnot asked\n",
        capture_output=True,
        encoding="utf-8",
        env=environment(tmp_path),
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{first}\n{second}\n{first}\n"), done.stderr
    assert "Forgotten." in done.stderr
    assert "/system [text]" in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_last_line_without_its_end_is_answered(
    tiny_qwen2: Path, stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?"))
    assert main(["infer", "--model", str(tiny_qwen2), "--stream", stream, *GREEDY]) == 0
    assert capsys.readouterr().out == expected(tiny_qwen2, ["Who are you?"])[0] + "\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--adapters", "{model}"], "is a whole model, not an adapter"),
        (["--adapters", "{here}/nowhere"], "no such folder"),
        (["--model", "{model}", "--val_dataset", "{here}/none.jsonl"], "none.jsonl"),
        (["--model", "{model}", "--max_length", "5", "--val_dataset", "{here}/rows.jsonl"], "No row could be answered"),
        (["--model", "{model}", "--max_length", "20"], "there is room for 20"),
    ],
)
def test_mistakes_are_said_in_a_line(
    flags: list[str],
    words: str,
    tiny_qwen2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you? " * 9))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "Who are you?"}) + "\n")
    filled = [flag.format(model=tiny_qwen2, here=tmp_path) for flag in flags]
    assert main(["infer", *filled, "--result_path", str(tmp_path / "out.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


class Terminal:
    """The chat in a terminal; each prompt is waited for."""

    def __init__(self, tmp_path: Path, *flags: str) -> None:
        self.child = pexpect.spawn(
            SWIFT[0],
            [*SWIFT[1:], *flags],
            env=environment(tmp_path),
            encoding="utf-8",
            timeout=30,
            dimensions=(40, 200),
        )
        self.until_prompt()

    def until_prompt(self) -> str:
        """What is shown before the next prompt."""
        self.child.expect(r">>>.*?\x1b\[\?25h")
        return plain(self.child.before)

    def say(self, keys: str) -> str:
        self.child.send(keys)
        self.child.expect(r"\x1b\[\?2004l")  # the line is taken: bracketed paste is switched off
        return self.until_prompt()


def test_a_chat_in_a_terminal(tiny_qwen2: Path, tmp_path: Path) -> None:
    first, second = expected(tiny_qwen2, ["Who are you?", "one\ntwo"])
    chat = Terminal(tmp_path, "--model", str(tiny_qwen2), *GREEDY)
    assert first in chat.say("Who are you?\r")
    assert second in chat.say("one\\\rtwo\r")  # a line that ends with \ goes on
    assert "Forgotten." in chat.say("/clear\r")
    assert first in chat.say("Who are you?\r")
    assert second in chat.say("one\x1b\rtwo\r")  # Alt-Enter
    chat.say("clear\r")
    chat.say("Who are you?\r")
    assert second in chat.say('"""\rone\rtwo\r"""\r')
    assert "There is no /claer" in chat.say("/claer\r")
    assert "System prompt: the template's own" in chat.say("/system\r")
    assert "System prompt: Be brief." in chat.say("/system Be brief.\r")
    assert "/system [text]" in chat.say("/help\r")
    chat.say("/multi\r")
    chat.say("/clear #\r")
    chat.say("one\rtwo #\r")
    chat.say("/single\r")
    chat.say("/system\r")
    assert "System prompt: Be brief." in chat.say("\x1b[A\r")  # the history
    chat.child.send("\x04")  # Ctrl-D
    chat.child.expect(pexpect.EOF)
    chat.child.wait()  # close() would kill it while it is leaving
    assert chat.child.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(tiny_qwen2: Path, tmp_path: Path) -> None:
    # Greedily, this model repeats itself for as long as it may: no luck ends the answer before Ctrl-C does.
    flags = ["--model", str(tiny_qwen2), "--temperature", "0", "--max_new_tokens", "30000"]
    chat = Terminal(tmp_path, *flags)
    chat.child.send("Who are you?\r")
    chat.child.expect(r"\x1b\[\?2004l")
    chat.child.expect(r"\w+\s")  # the answer has begun
    for _ in range(3):  # on a loaded machine one was lost, why is not known; a person presses again
        chat.child.sendintr()
        if chat.child.expect(["Stopped. Ctrl-C again leaves.", pexpect.TIMEOUT], timeout=8) == 0:
            break
    chat.until_prompt()
    chat.child.send("\x03")
    chat.child.expect(pexpect.EOF)
    chat.child.wait()  # close() would kill it while it is leaving
    assert chat.child.exitstatus == 0
