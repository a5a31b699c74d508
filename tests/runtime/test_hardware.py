from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from swiftune.runtime.hardware import _container_room, free_memory


def system(root: Path, groups: str, **files: str) -> Path:
    """A folder with a ``/proc`` and a ``/sys``; names of ``files`` have ``__`` for a slash."""
    for name, text in {"proc__self__cgroup": groups, **{f"sys__fs__cgroup__{k}": v for k, v in files.items()}}.items():
        path = root / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    assert _container_room(str(tmp_path)) == 1 << 60
    free = {"memory-max": "max\n", "memory-current": "5\n"}
    assert _container_room(str(system(tmp_path, "0::/\n", **free))) == 1 << 60
    assert free_memory(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(
    ("groups", "folder", "limit", "used", "spare"),
    [
        ("0::/box/job\n", "", "memory-max", "memory-current", "inactive_file"),
        (
            "9:name=systemd:/\n4:memory:/box/job\n0::/\n",
            "memory__",
            "memory-limit_in_bytes",
            "memory-usage_in_bytes",
            "total_inactive_file",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_the_tightest_group_on_the_way_up_counts(
    tmp_path: Path, groups: str, folder: str, limit: str, used: str, spare: str
) -> None:
    """The outer group leaves 1000 - 900, and 300 of what it uses can be given up; the inner one leaves 800 - 100."""
    files = {
        f"{folder}box__{limit}": "1000\n",
        f"{folder}box__{used}": "900\n",
        f"{folder}box__memory-stat": f"anon 1\n{spare} 300\n",
        f"{folder}box__job__{limit}": "800\n",
        f"{folder}box__job__{used}": "100\n",
    }
    assert _container_room(str(system(tmp_path, groups, **files))) == 400


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc")
def test_the_team_of_the_calling_thread_is_released_and_made_anew() -> None:
    program = """
import os, time, torch
from swiftune.runtime.hardware import release_team

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(4)
alone = threads()
torch.ones(1 << 20).exp()
together = threads()
release_team()
time.sleep(0.2)  # Linux lists a thread for a moment after others know that it has ended
released = threads()
torch.ones(1 << 20).exp()
print(together - alone, released - alone, threads() - alone)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "0", "3"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_freed_memory_is_kept_until_there_is_too_much_of_it() -> None:
    code = """
from swiftune.runtime import hardware
hardware.keep_freed_memory()
blocks = [bytearray(100_000) for _ in range(1000)]
full = hardware.resident_memory()
del blocks[::2]
hardware.give_back_freed_memory(above=full)
kept = hardware.resident_memory()
hardware.give_back_freed_memory(above=full // 2)
print(full - kept, full - hardware.resident_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, given = map(int, done.stdout.split())
    assert kept < 5_000_000
    assert given > 40_000_000
