"""Real trainings in processes of their own, to be killed; and what has to hold of the folders they leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from safetensors.torch import load_file

from tests import tiny
from tests.recipes.chats import Flags, chats, log_of, write_jsonl

MARKER = "complete.json"
PATIENCE = 180.0
"""Seconds after which a run is taken to hang."""
OF_THE_CLOCK = {"elapsed_time", "remaining_time", "memory(GiB)", "train_speed(iter/s)", "tokens/s"} | {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_tokens_per_second",
}
"""Keys of the log that two runs of the same training differ in."""


@dataclass(frozen=True)
class World:
    """A folder with a tiny model and rows, where the commands are run."""

    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> World:
        """The world in ``folder``, which is made once for all workers."""
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                draft = folder.with_name(f"{folder.name}.partial")
                tiny.make_model(draft / "model", layers=1, hidden=32)
                for name, count in {"a": 8, "b": 7, "c": 3}.items():
                    write_jsonl(draft / f"{name}.jsonl", chats(count, seed=ord(name)))
                draft.rename(folder)
        return cls(folder)

    def environment(self, flags: Flags) -> dict[str, str]:
        """Of the commands, besides what is inherited; what is written in capitals among the flags belongs to it."""
        own = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "SWIFTUNE_CACHE": str(self.folder / "cache")}
        return own | {name: str(value) for name, value in flags.items() if name.isupper()}

    def start(self, flags: Flags) -> Training:
        """Starts ``swift sft``, and prints the line that does the same by hand."""
        own = self.environment(flags)
        argv = typed({name: value for name, value in flags.items() if not name.isupper()})
        settings = " ".join(f"{name}={value}" for name, value in own.items())
        print(f"$ cd {self.folder} && {settings} swift sft {shlex.join(argv)}")
        output = Path(flags["output_dir"])
        return Training(
            [sys.executable, "-m", "swiftune.cli.main", "sft", *argv], self.folder, os.environ | own, output
        )

    def finish(self, flags: Flags) -> str:
        """Trains to the end. Returns what was said on stderr."""
        with self.start(flags) as training:
            code, said = training.end()
        assert code == 0, said
        return said

    def whole_run(self, name: str, flags: Flags) -> Path:
        """The folder of a run that nothing disturbed; trained once for all workers."""
        output = self.folder / "whole" / name
        output.parent.mkdir(exist_ok=True)
        with FileLock(f"{output}.lock"):
            if not (output / "done").exists():
                self.finish(flags | {"output_dir": output})
                (output / "done").touch()
        return newest_run(output)


class Training:
    """A training under way, in a process group of its own."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], output: Path) -> None:
        self.output = output
        self.left = saving(newest_run(output)) if runs_in(output) else {}
        """What an earlier kill left of a save."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self._said.close()

    @property
    def run(self) -> Path | None:
        """The run's folder, as soon as there is one."""
        return newest_run(self.output) if runs_in(self.output) else None

    def wait_for(self, what: Callable[[Path], bool]) -> bool:
        """Waits until the run's folder shows ``what``. False where the training ended before."""
        while self.process.poll() is None:
            run = self.run
            if run is not None and what(run):
                return True
            assert time.monotonic() < self.began + PATIENCE, self._hung()
            time.sleep(0.001)
        return False

    def kill(self) -> None:
        """SIGKILL to the whole group. Returns when no process of it is left to write anything."""
        members = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in members):
            time.sleep(0.001)

    def end(self) -> tuple[int, str]:
        """Waits for the end: the exit code, and what was said."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._hung()) from None
        return self.process.returncode, self.said

    @property
    def said(self) -> str:
        """What was written to the terminal so far."""
        size = os.fstat(self._said.fileno()).st_size
        return os.pread(self._said.fileno(), size, 0).decode()

    def _hung(self) -> str:
        self.kill()
        return f"No end after {PATIENCE:.0f} seconds:\n{self.said}"


def typed(flags: Flags) -> list[str]:
    """Flags as they are typed; a list is several words."""
    values = {name: value if isinstance(value, list) else [value] for name, value in flags.items()}
    return [word for name, several in values.items() for word in (f"--{name}", *map(str, several))]


def runs_in(output: Path) -> list[Path]:
    """The run folders below ``output``, oldest first; ``output`` itself with --add_version false."""
    if (output / "args.json").exists():
        return [output]
    return sorted(output.glob("v*-*"), key=lambda run: int(run.name[1:].split("-")[0]))


def newest_run(output: Path) -> Path:
    return runs_in(output)[-1]


def checkpoints(run: Path) -> dict[int, Path]:
    """All that is called a checkpoint, by step, the oldest first."""
    found = {int(m[1]): run / m[0] for p in os.listdir(run) if (m := re.fullmatch(r"checkpoint-(\d+)", p))}
    return dict(sorted(found.items()))


def saving(run: Path) -> dict[int, int]:
    """The steps whose checkpoint is being written, and when its folder last changed (ns)."""
    found = {}
    for name in os.listdir(run):
        if m := re.fullmatch(r"\.checkpoint-(\d+)\.partial", name):
            with suppress(FileNotFoundError):  # renamed by now
                found[int(m[1])] = (run / name).stat().st_mtime_ns
    return found


def logged(run: Path) -> int:
    """The last step in the log, whose last line may be torn."""
    file = run / "logging.jsonl"
    steps = re.findall(r'"global_step/max_steps": "(\d+)/', file.read_text()) if file.exists() else []
    return int(steps[-1]) if steps else 0


def assert_whole(folder: Path) -> None:
    """A folder called checkpoint-N has all that its marker names, byte for byte, and nothing else."""
    marked = json.loads((folder / MARKER).read_text())["files"]
    there = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name != MARKER}
    assert there.keys() == marked.keys(), folder
    for name, file in there.items():
        content = file.read_bytes()
        assert {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} == marked[name], file
    assert weights_of(folder)


def assert_opens(folder: Path, model: Path) -> None:
    """Plain PEFT or Transformers opens it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").exists():
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder)
    else:
        AutoModelForCausalLM.from_pretrained(folder)


def weights_of(folder: Path) -> dict[str, bytes]:
    """The bytes of the safetensors files of a checkpoint; each of them opens."""
    files = sorted(folder.glob("*.safetensors"))
    assert all(load_file(file) for file in files)
    return {file.name: file.read_bytes() for file in files}


def figures(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock. Steps have their own rows and drop-out, so their losses tell both."""
    return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in log_of(run)]


def assert_same(run: Path, whole: Path) -> None:
    """A run that was disturbed has left what the undisturbed one did: names, bits, losses, and nothing beside."""
    ours, theirs = figures(run), figures(whole)
    if "train_loss" not in ours[-1]:  # killed after the last checkpoint: nothing was left to do but the totals
        theirs.pop()
    assert ours == theirs
    assert list(checkpoints(run)) == list(checkpoints(whole))
    for step, folder in checkpoints(run).items():
        assert_whole(folder)
        a, b = weights_of(folder), weights_of(checkpoints(whole)[step])
        assert a.keys() == b.keys(), step
        assert [name for name in a if a[name] != b[name]] == [], step
    assert best(run) == best(whole)
    assert_nothing_partial(run)


def assert_nothing_partial(run: Path) -> None:
    """Neither a save nor a deletion was left half done."""
    assert [p for p in os.listdir(run) if p.startswith(".checkpoint") or "partial" in p] == []


def best(run: Path) -> str | None:
    """What ``checkpoint-best`` points to."""
    link = run / "checkpoint-best"
    if not link.is_symlink():
        return None
    assert link.exists(), f"{link} points to nothing"
    return os.readlink(link)
