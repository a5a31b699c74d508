"""The swift command as a user runs it."""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from swiftune import __version__
from swiftune.cli import main as cli
from swiftune.cli.main import COMMANDS, NOT_BUILT, main
from swiftune.config.commands import COMMANDS as ARGUMENTS
from swiftune.config.declare import arguments_of
from swiftune.errors import DataError, Interrupted, RunError
from swiftune.runtime import log_file
from swiftune.runtime.stop import Terminated

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "numpy", "rich", "yaml")


def swift(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swiftune.cli.main", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", **environment},
        check=False,
    )


def cpu_seconds(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    swift(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("words", "bound"), [(("--help",), 0.2), (("sft", "--help"), 0.4), (("infer", "--help"), 0.4)])
def test_help_is_quick(words: tuple[str, ...], bound: float) -> None:
    """Once in ten times: what else the machine does makes all of it slower."""
    assert any(cpu_seconds(*words) < bound for _ in range(10))


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["infer", "-h"], ["sft", "--nonsense"]])
def test_help_and_mistakes_import_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from swiftune.cli.main import main; main({words}); print(*sorted({HEAVY!r} & sys.modules.keys()))"
    )
    code = code.replace(f"{HEAVY!r} &", f"set({HEAVY!r}) &")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_the_overview_lists_every_command_and_nothing_else() -> None:
    done = swift("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert not any(f"  {name} " in done.stdout for name in NOT_BUILT)
    assert swift().stdout == done.stdout


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_page_of_help_shows_every_flag_and_fits(command: str, width: int) -> None:
    done = swift(command, "--help", COLUMNS=str(width))
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "\x1b" not in done.stdout
    text = " ".join(done.stdout.split())
    for argument in arguments_of(ARGUMENTS[command]).values():
        assert f" --{argument.name} " in text
        assert f"(default: {argument.default})" in text
        assert argument.help in text
        assert argument.group[0] in text


def test_version() -> None:
    assert swift("--version").stdout == f"swiftune {__version__}\n"


THERE = f"commands are {', '.join(COMMANDS)}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["inferr"], "error: there is no command 'inferr'; did you mean swift infer?"),
        (["zzz"], f"error: there is no command 'zzz'; {THERE}."),
        (["rlhf"], f"error: swift rlhf is not built yet; {THERE}."),
        (["--model", "m"], f"error: --model stands where a command was expected; {THERE}."),
    ],
)
def test_a_command_that_is_not_there(words: list[str], expected: str) -> None:
    done = swift(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected + "\n")


def test_mistakes_are_all_told_one_a_line() -> None:
    done = swift("sft", "--lora_rnk", "8", "--learning_rate", "fast")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: --lora_rnk is unknown; did you mean --lora_rank?",
        "error: --learning_rate takes a number, 0 or more, not 'fast'.",
        "error: --dataset is missing: name the rows to train on, such as --dataset rows.jsonl.",
    ]


def test_a_reader_that_leaves_is_no_fault_of_ours() -> None:
    done = subprocess.run(
        f"{sys.executable} -m swiftune.cli.main sft --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: swift sft")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            DataError("rows.jsonl:3 is not JSON.", "Mend that line."),
            2,
            "error: rows.jsonl:3 is not JSON. Mend that line.\n",
        ),
        (RunError("The disk is full."), 1, "error: The disk is full.\n"),
        (
            Interrupted("Stopped at step 3.", "Go on with: swift sft …"),
            130,
            "interrupted: Stopped at step 3. Go on with",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Terminated(), 143, "interrupted\n"),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert main([]) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(("debug", "writable"), [("", True), ("1", True), ("", False)])
def test_a_fault_is_told_in_two_lines_and_its_traceback_is_where_they_say(
    debug: str, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        with log_file.of(words):
            raise ZeroDivisionError("oh")

    (tmp_path / "file").touch()
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / ("cache" if writable else "file/cache")))
    monkeypatch.setenv("SWIFTUNE_DEBUG", debug)
    monkeypatch.setattr(cli, "_run", fail)
    assert main([]) == 1
    *above, first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: this is a fault of Swiftune {__version__}, not yours: ZeroDivisionError: oh"
    assert ("Traceback (most recent call last):" in above) == bool(debug or not writable)
    if writable:
        (log,) = (tmp_path / "cache/logs").iterdir()
        assert second == f"Please report it with {log}."
        assert "ZeroDivisionError: oh" in log.read_text()
    else:
        assert second == "Please report it with the lines above."


def test_a_mistake_shows_where_it_was_noticed_if_asked() -> None:
    assert "Traceback" in swift("sft", SWIFTUNE_DEBUG="1").stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_recipe(name: str) -> None:
    assert COMMANDS[name].arguments == ARGUMENTS[name].__name__
    module, _, function = COMMANDS[name].recipe.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_flags_reach_the_recipe_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import swiftune.recipes.sft as recipe

    seen = []
    monkeypatch.setattr(recipe, "sft", seen.append)
    (tmp_path / "run.yaml").write_text("dataset: d\nlora_rank: 4\n")
    assert main(["sft", str(tmp_path / "run.yaml"), "--lora_alpha", "8"]) == 0
    assert (seen[0].lora_rank, seen[0].lora_alpha, seen[0].dataset) == (4, 8, ["d"])
