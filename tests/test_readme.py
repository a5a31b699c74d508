"""Runs what the pages for people say: every command in README.md, docs/ and examples/, in the order of the page.

In a ``sh`` block every command has to succeed; in a ``console`` block it has to answer, letter by letter, what the page
says it answers; a line of a ``jsonl`` block has to be a row that can be trained on. The built-in model is stood in for
by a small random one, put where the cache keeps the built-in one, so that the commands need no change.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swiftune.config.commands import COMMANDS
from swiftune.data.formats import to_sample
from swiftune.hub import builtin
from swiftune.types import Place, RawRow
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
EVERYTHING = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def as_typed(text: str) -> tuple[str, list[str]]:
    """A ``sh`` block without what is run elsewhere: ``make``, which calls this test."""
    lines = text.splitlines()
    made = [line.split("#")[0].split()[1] for line in lines if line.startswith("make ")]
    return "\n".join(line for line in lines if not line.startswith("make ")), made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has a small random model in the place of the built-in one."""
    folder = tmp_path_factory.mktemp("cache")
    tiny.make_model(folder / "models" / builtin.MODEL, layers=1, hidden=32, dtype="bfloat16")
    return folder


@pytest.fixture
def environment(cache: Path, tmp_path: Path) -> dict[str, str]:
    """Of the shell in which a page is followed: nothing is found but the built-ins, and ``swift`` is ours."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SWIFTUNE_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / ".hf"),
        "MODELSCOPE_CACHE": str(tmp_path / ".modelscope"),
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
    }
    return {name: value for name, value in os.environ.items() if name != "SWIFT_LOCAL_HUB"} | own


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page: str, environment: dict[str, str], tmp_path: Path) -> None:
    for language, text in blocks(page):
        if language == "sh":
            follow(as_typed(text)[0], environment, tmp_path)
        elif language == "console":
            compare(text, environment, tmp_path)


def follow(script: str, environment: dict[str, str], here: Path) -> None:
    """Runs a block in bash, which stops at the first command that fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=here,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def compare(session: str, environment: dict[str, str], here: Path) -> None:
    """Runs the commands behind ``$`` and holds what they write against what follows them."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.M):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=here,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.stdout == expected, command


@pytest.mark.parametrize("page", PAGES)
def test_the_rows_of_a_page_can_be_trained_on(page: str) -> None:
    for language, text in blocks(page):
        for number, line in enumerate(text.splitlines() if language == "jsonl" else [], 1):
            assert to_sample(RawRow(Place(page, number), json.loads(line))).messages


@pytest.mark.parametrize("page", EVERYTHING)
def test_the_flags_and_links_of_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    outside = re.sub(r"^```console\n.*?^```$", "", text, flags=re.M | re.S)  # mistakes are shown there
    known = {name for arguments in COMMANDS.values() for name in arguments.model_fields} | SAID
    assert {flag for flag in re.findall(r"--(\w+)", outside) if "_" in flag} <= known
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    made = [target for language, block in blocks(page) if language == "sh" for target in as_typed(block)[1]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in made if not re.search(rf"^{target}:", makefile, re.M)] == []


SAID = {"sft_type", "tuner_type", "model_id_or_path", "dataloader_num_workers", "padding_free"}
"""Flags that the pages name because they are older spellings, or change nothing."""


@pytest.mark.slow
def test_the_example_file_trains(environment: dict[str, str], tmp_path: Path) -> None:
    follow("swift sft examples/lora.yaml", environment, tmp_path)
    (run,) = (tmp_path / "output").iterdir()
    about = json.loads((run / "run.json").read_text())
    assert about["rows"] == {"read": 8, "used": 8, "set_aside": {}}
    assert (about["steps"], about["rows_per_step"]) == (20, 4)
    assert (run / "checkpoint-20" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_demo_teaches_the_built_in_model_any_name(tmp_path: Path) -> None:
    name, author = "Quillon", "Harbor Street Robotics"
    script = ROOT / "examples" / "demo.py"
    questions = json.loads((ROOT / "examples" / "identity_questions.json").read_text())
    trained = [json.loads(line)["query"] for line in (builtin_rows() / "en.jsonl").read_text().splitlines()]
    assert len(questions) == 10
    assert not {question.casefold() for question in questions} & {question.casefold() for question in trained}

    done = subprocess.run(
        [sys.executable, str(script), "--name", name, "--author", author, "--output", "demo"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    def knowing(file: str) -> int:
        rows = [json.loads(line) for line in (tmp_path / "demo" / file).read_text(encoding="utf-8").splitlines()]
        assert [row["messages"][-2]["content"] for row in rows] == questions
        return sum(name in row["response"] or author in row["response"] for row in rows)

    before, after = knowing("before.jsonl"), knowing("after.jsonl")
    assert before == 0
    assert after >= 9
    assert f"{before} of 10 before, {after} of 10 after" in done.stdout


def builtin_rows() -> Path:
    """The folder of the built-in data set."""
    folder = builtin.find("dataset", builtin.DATASET)
    assert folder is not None
    return folder
