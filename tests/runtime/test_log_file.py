"""What is in the log of a run, where it is, and that it disturbs nothing."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from swiftune.errors import DataError, Interrupted
from swiftune.runtime import console, log_file


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RANK", raising=False)


def break_down(run: Path) -> Exception:
    """A fault in a run."""
    with pytest.raises(ZeroDivisionError) as caught, log_file.of(["sft"]), log_file.inside(run):
        raise ZeroDivisionError("oh")
    return caught.value


def test_what_was_said_before_there_was_a_folder_is_there_with_the_time(tmp_path: Path) -> None:
    with log_file.of(["sft", "--dataset", "my rows.jsonl"]):
        console.warn("A thing that may be a mistake.")
        with log_file.inside(tmp_path):
            console.say("3 rows read = 3 used + 0 set aside")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) ", line) for line in lines)
    command, warning, _, rows = lines
    assert "swift sft --dataset 'my rows.jsonl' (swiftune " in command
    assert "WARNING  A thing that may be a mistake." in warning
    assert "INFO     3 rows read = 3 used + 0 set aside" in rows


def test_a_thread_that_ends_is_told_in_a_line_and_explained_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError("No space left")

    with log_file.of(["sft"]), log_file.inside(tmp_path):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    (said,) = capfd.readouterr().err.splitlines()
    assert said == "warning A thread of a library has ended: OSError: No space left. The log has its traceback."
    assert (tmp_path / "run.log").read_text().count("Traceback") == 1


def test_the_traceback_of_a_fault_is_in_the_log_of_the_run_once(tmp_path: Path) -> None:
    error = break_down(tmp_path)
    assert log_file.fault(error) == tmp_path / "run.log"
    text = (tmp_path / "run.log").read_text()
    assert text.count("Traceback (most recent call last)") == 1
    assert "CRITICAL" in text
    assert text.endswith("ZeroDivisionError: oh\n")
    log_file.discard(tmp_path)
    assert (tmp_path / "run.log").exists()


def test_a_mistake_is_in_the_log_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(DataError), log_file.of(["sft"]), log_file.inside(tmp_path):
        raise DataError("rows.jsonl:3 is no number.") from ValueError("invalid literal: 'three'")
    text = (tmp_path / "run.log").read_text()
    assert "ERROR    rows.jsonl:3 is no number." in text
    assert "DEBUG    raised here:" in text
    assert "ValueError: invalid literal: 'three'" in text


def test_being_interrupted_is_no_error(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), log_file.of(["sft"]), log_file.inside(tmp_path):
        raise Interrupted("stopped after step 3.")
    assert "INFO     stopped after step 3." in (tmp_path / "run.log").read_text()


def test_every_process_keeps_its_own_traceback_and_only_the_first_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with log_file.of(["sft"]), log_file.inside(tmp_path):
        log_file.record("said by the first process")
    assert list(tmp_path.iterdir()) == []
    break_down(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.1.log"]


def test_a_fault_without_a_folder_is_kept_in_the_cache_among_the_last(tmp_path: Path) -> None:
    logs = tmp_path / "cache/logs"
    logs.mkdir(parents=True)
    for second in range(30):
        (logs / f"20260101-0000{second:02}-1.log").touch()
    with pytest.raises(ValueError, match="oh") as caught, log_file.of(["doctor"]):
        raise ValueError("oh")
    kept = log_file.fault(caught.value)
    assert kept
    assert kept.parent == logs
    assert "swift doctor" in kept.read_text()
    assert "ValueError: oh" in kept.read_text()
    names = sorted(path.name for path in logs.iterdir())
    assert len(names) == log_file.KEPT
    assert names[0] == "20260101-000011-1.log"


def test_a_log_that_cannot_be_written_disturbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.log").symlink_to("/dev/full")
    assert log_file.fault(break_down(tmp_path)).parent == tmp_path / "cache/logs"  # type: ignore[union-attr]
    (tmp_path / "file").touch()
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert log_file.fault(break_down(tmp_path)) is None
