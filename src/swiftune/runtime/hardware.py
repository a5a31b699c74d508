"""What this machine computes on, in which dtype it is fast, and how much memory is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def _container_room() -> int:
    """What a control group's memory limit leaves, or a number larger than any RAM where there is none."""
    from pathlib import Path

    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return 1 << 60
    return (1 << 60) if limit == "max" else max(0, int(limit) - used)
