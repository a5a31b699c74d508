"""Whatever is typed or stands in a file of arguments: arguments, or exit code 2 with a line for each mistake.
``--hypothesis-profile deep`` tries more of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from swiftune.cli import main as cli
from swiftune.config.commands import COMMANDS
from swiftune.config.compat import NOT_BUILT, RENAMED, UNNEEDED, VALUES
from swiftune.config.declare import Arguments, arguments_of
from swiftune.config.parse import parse
from swiftune.errors import ArgumentsError, UsageError

NAMES = st.sampled_from(
    [
        *arguments_of(COMMANDS["sft"]),
        *arguments_of(COMMANDS["infer"]),
        *RENAMED,
        *UNNEEDED,
        *(name.replace("*", "x") for name in NOT_BUILT),
        *("config", "lora-rank", "Lora_Rank", "lora_rnk", "", "=", "--", "no_such_flag"),
    ]
)
TYPED = st.sampled_from(
    [
        *(
            "true",
            "True",
            "FALSE",
            "yes",
            "0",
            "1",
            "-1",
            "007",
            "1e-4",
            "1e-4e",
            "1e999",
            "nan",
            "-inf",
            "1_000",
            "１",
        ),
        *("0x10", "1.0", "9" * 5000, "8,16", "[8]", "{}", '{"a": 1}', '{"a": NaN}', '{"a": {"b": []}}', "[" * 2000),
        *(
            "",
            " ",
            "\0",
            "\n",
            "\ufeff",
            "\ud800",
            "\x1b[31m",
            "a b",
            "'a'",
            "(",
            "[[",
            "*",
            "%",
            "5%",
            "#",
            ":",
            "~x/y",
            "/",
        ),
        *(
            "lora",
            "full",
            "none",
            "null",
            "auto",
            "bfloat16",
            "none.txt",
            "a,b",
            "a" * 5000,
            "\u2013\u2013lora_rank",
            "-",
        ),
        *("int8", "-lora_rank", "--", "x.yaml", "x.json"),
    ]
) | st.text(max_size=6)


def flags(name: str, values: list[str], equals: bool) -> list[str]:
    return [f"--{name}={' '.join(values)}"] if equals else [f"--{name}", *values]


FLAGS = st.builds(flags, NAMES, st.lists(TYPED, max_size=2), st.booleans())
LINES = st.lists(FLAGS, max_size=5).flatmap(
    lambda given: st.sampled_from([given, given * 2, given + given[::-1]]).map(
        lambda each: list(itertools.chain.from_iterable(each))
    )
)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@given(command=st.sampled_from(sorted(COMMANDS)), line=LINES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(command="sft", line=["--lora_rank", "8", "--lora_rank", "x", "--lora_rank"])
def test_a_line_is_arguments_or_exit_code_2(capsys, command: str, line: list[str]) -> None:
    assert_answered(capsys, command, line)


def assert_answered(capsys: pytest.CaptureFixture[str], command: str, line: list[str]) -> None:
    try:
        args: Arguments | None = parse(COMMANDS[command], line)
    except ArgumentsError:
        args = None
    if args is None and not {"--help", "-h"} & set(line):
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NO_COLOR", "1")
            assert cli.main([command, *line]) == UsageError.exit_code
        said = capsys.readouterr().err.splitlines()
        assert any(sentence.startswith("error: ") for sentence in said)
        assert not any("Traceback" in sentence or "fault of Swiftune" in sentence for sentence in said)


KEYS = NAMES | st.sampled_from(["<<", "1", "null", "? a", "[a]", "&a b", "*a", "!!python/name:os.system a"])
SNIPPETS = st.sampled_from(
    [
        *(
            "8",
            "1e-4",
            "1_000",
            "0o17",
            "1:30",
            "2026-01-01",
            "no",
            "~",
            "''",
            '"\\ud800"',
            "!!binary aGk=",
            "!!set {a}",
        ),
        *(
            "!!python/object/apply:os.system [x]",
            "!!int x",
            "!!float []",
            "&a [*a]",
            "*b",
            "|\n  a\n  b",
            ">",
            "{a: b",
            "[a",
        ),
        *(
            "{a: {b: [1, {}]}}",
            "[8, [9]]",
            "\t8",
            "a: b",
            "- 8",
            "# 8",
            "%",
            "@x",
            "`x`",
            "'",
            '"',
            "\0",
            "\x07",
            "9" * 5000,
        ),
        *(".inf", ".nan", "[" * 400, "{? [a]: b}", "<<: 8", "!x y", "good.json", "[a, b]"),
    ]
)
YAML_LINES = st.builds(
    "{}{}{}{}".format, st.sampled_from(["", "", " ", "\t", "- "]), KEYS, st.sampled_from([": ", ":", " "]), SNIPPETS
)


@given(
    lines=st.lists(YAML_LINES | SNIPPETS, max_size=5),
    between=st.sampled_from(["\n", "\r\n", "\n---\n", "\n\n"]),
    coding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(lines=["lora_rank: " + "[" * 400 + "]" * 400], between="\n", coding="utf-8")
@example(lines=["lora_rank: &a [*a]"], between="\n", coding="utf-8")
@example(lines=["base: &b {lora_rank: 8}", "<<: *b"], between="\n", coding="utf-8")
def test_a_yaml_file_is_arguments_or_exit_code_2(capsys, lines: list[str], between: str, coding: str) -> None:
    Path("run.yaml").write_bytes(between.join(lines).encode(coding, "replace"))
    assert_answered(capsys, "sft", ["run.yaml"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | TYPED,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    values=st.dictionaries(NAMES | st.sampled_from(sorted(VALUES)), JSON, max_size=5) | JSON,
    cut=st.none() | st.integers(0, 30),
    ending=st.sampled_from(["json", "yaml"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_of_every_type_are_arguments_or_exit_code_2(capsys, values: Any, cut: int | None, ending: str) -> None:
    text = json.dumps(values) if ending == "json" else yaml.safe_dump(values)
    Path(f"run.{ending}").write_text(text[:cut], encoding="utf-8", errors="replace")
    assert_answered(capsys, "sft", [f"run.{ending}"])
