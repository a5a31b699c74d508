from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from swiftune.errors import OutputError, UsageError
from swiftune.train.run_folder import LOCK, begun, held, is_alive, refuse_alive

HOLD = """
import sys
from pathlib import Path
from swiftune.train import run_folder
with run_folder.begun(Path(sys.argv[1]), add_version=True) as run:
    (run / "logging.jsonl").touch()
    print(run, flush=True)
    sys.stdin.read()
"""


def holder(out: Path) -> subprocess.Popen[str]:
    """A process that begins a run in ``out``, prints its folder, and holds it until its stdin ends."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdin=pipe, stdout=pipe, text=True)


def number_of(run: Path) -> int:
    found = re.fullmatch(r"v(\d+)-\d{8}-\d{6}", run.name)
    assert found, run
    return int(found[1])


def begin(out: Path) -> Path:
    """A run that has begun training, and ended."""
    with begun(out, add_version=True) as run:
        (run / "logging.jsonl").touch()
    return run


def test_numbers_go_up_and_runs_started_at_once_get_one_each(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    assert number_of(begin(out)) == 0
    (out / "v7-20260101-000000").mkdir()
    assert number_of(begin(out)) == 8
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: begin(out), range(32)))
    assert sorted(map(number_of, runs)) == list(range(9, 41))
    assert not list(out.glob(".*")), "a claim of a number is left"
    with begun(tmp_path / "b", add_version=False) as run:
        assert run == tmp_path / "b"


def test_processes_started_at_once_get_a_number_each(tmp_path: Path) -> None:
    processes = [holder(tmp_path) for _ in range(8)]
    runs = [Path(p.stdout.readline().strip()) for p in processes]  # type: ignore[union-attr]
    assert all(is_alive(run) for run in runs)
    for process in processes:
        process.communicate(timeout=20)
    assert sorted(map(number_of, runs)) == list(range(8))
    assert not any(is_alive(run) for run in runs)


def test_a_run_is_held_by_one_process_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert process.stdout
        run = Path(process.stdout.readline().strip())
        refusal = f"{run} is in use: process {process.pid} trains in it. Wait for its end"
        with pytest.raises(UsageError, match=refusal), held(run):
            pass
        with pytest.raises(UsageError, match=refusal):
            refuse_alive(run)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
    assert not is_alive(run)
    with held(run):
        assert is_alive(run)
    assert {path.name for path in run.iterdir()} == {"logging.jsonl"}


def test_a_run_that_never_began_leaves_nothing_but_what_is_not_its_own(tmp_path: Path) -> None:
    with begun(tmp_path / "out", add_version=True) as run:
        for name in ("args.json", "run.json", "set_aside.jsonl", "run.log"):
            (run / name).touch()
        (run / "runs").mkdir()
    assert not run.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with begun(tmp_path / "mine", add_version=False) as run:
        (run / "args.json").touch()
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_one_folder_takes_one_run(tmp_path: Path) -> None:
    with begun(tmp_path, add_version=False) as run:
        assert is_alive(run)
        with pytest.raises(UsageError, match="is in use"), begun(tmp_path, add_version=False):
            pass
        (run / "checkpoint-1").mkdir()
    assert not (run / LOCK).exists()
    with pytest.raises(UsageError, match="there is a run in"), begun(tmp_path, add_version=False):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="--output_dir .*file.* cannot be written"),
        begun(tmp_path / "file" / "out", add_version=True),
    ):
        pass


def test_an_interrupt_just_after_the_lock_is_taken_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = FileLock.acquire

    def interrupted(self: FileLock, **how: float) -> None:
        acquire(self, **how)
        raise KeyboardInterrupt

    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(FileLock, "acquire", interrupted)
    with pytest.raises(KeyboardInterrupt), held(run):
        pass
    assert not run.exists()
