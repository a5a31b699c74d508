"""What this machine computes on, in which dtype it is fast, and how much memory is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

DTYPES = ("float32", "float16", "bfloat16")


def device() -> torch.device:
    """The device of this process: its GPU (by ``LOCAL_RANK``), or the CPU."""
    import os

    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def has_matrix_units(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies tiles of ``dtype`` in units of their own (Intel's AMX)."""
    import torch

    return device.type == "cpu" and dtype == torch.bfloat16 and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def choose_dtype(asked: str | None, own: str | None, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and a line to say where it is not the one asked for.

    Args:
        asked: ``--torch_dtype``; ``None`` takes the model's own.
        own: the dtype in the model's configuration.

    Returns:
        The dtype, and a sentence (empty where nothing was changed that the user had asked for).
    """
    import torch

    wanted = asked or own or "float32"
    wanted = wanted if wanted in DTYPES else "float32"
    bf16 = has_fast_bfloat16(device)
    chosen = wanted
    if wanted == "float16" and device.type == "cpu":
        chosen = "bfloat16" if bf16 else "float32"
    elif wanted == "bfloat16" and not bf16:
        chosen = "float16" if device.type == "cuda" else "float32"
    said = f"--torch_dtype {asked} is slow on this {device.type}; computing in {chosen}." if asked else ""
    return getattr(torch, chosen), said if chosen != wanted else ""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on ``device`` (on a CPU: RAM, or what the container's limit leaves of it)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min(psutil.virtual_memory().available, _container_room())


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, where the C library can be told to (glibc).

    A step frees what its activations took, and takes as much again at once. Given back to the system in between, every
    page of it is made, and filled with zeros, anew, which takes longer than most of the operations that write to it.
    """
    import ctypes
    import sys

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-8, 3)  # M_ARENA_MAX: one heap for each lane, or they wait for each other, and one for the rest
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: trim the heap when asked to only
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: the heap serves all but the largest blocks (this is glibc's limit)


def resident_memory() -> int:
    """Bytes of this process that are in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def give_back_freed_memory(above: int) -> None:
    """Gives freed memory back to the system where more than ``above`` bytes are resident (glibc).

    Blocks of ever other sizes leave holes between them that no later one fits into: what is kept grows with every step.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and resident_memory() > above:
        trim(0)


def release_team() -> None:
    """Ends the threads that GNU OpenMP keeps for the operations of the calling thread; its next one makes them anew.

    While two threads keep a team, there are more threads than cores, and those of both wait asleep instead of spinning:
    a pass over one token took 47 ms instead of 31.
    """
    from ctypes import CDLL
    from pathlib import Path

    import torch

    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        pause = getattr(CDLL(str(library)), "omp_pause_resource_all", None)
        if pause is not None:
            pause(1)  # omp_pause_soft


def _container_room(root: str = "/") -> int:
    """What the memory limits of this process's control groups leave, or more than any RAM where there are none.

    The limit of a group holds for all groups within it, so each on the way up counts. Files in the page cache that
    nobody has looked at lately are counted as used there, and given up when memory is asked for.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """
    from pathlib import Path

    system = Path(root, "sys/fs/cgroup")
    names = {  # version: folder, limit, in use, what of it can be given up
        "": (system, "memory.max", "memory.current", "inactive_file"),
        "memory": (system / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    rooms = [1 << 60]
    for line in _lines(Path(root, "proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        version = next((v for v in controllers.split(",") if v in names), None)
        if version is None:
            continue
        top, most, used, spare = names[version]
        own = Path(path.lstrip("/"))
        for group in [top / own, *(top / parent for parent in own.parents)]:
            stat = dict(entry.split() for entry in _lines(group / "memory.stat"))
            for limit, usage in zip(_lines(group / most), _lines(group / used), strict=False):
                if limit != "max":
                    rooms.append(max(0, int(limit) - int(usage) + int(stat.get(spare, 0))))
    return min(rooms)


def _lines(file: Path) -> list[str]:
    """The lines of a small file; none where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
