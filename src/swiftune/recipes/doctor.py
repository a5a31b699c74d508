"""``swift doctor``: what this machine is, what is fast on it, and what is missing for what."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune import __version__
from swiftune.hub.clients import Hub, HuggingFace, ModelScope, answers, flag
from swiftune.hub.find import MIRROR
from swiftune.runtime import hardware
from swiftune.runtime.paths import cache_dir

if TYPE_CHECKING:
    import torch

EXTRAS = {
    "wandb": "swift sft --report_to wandb",
    "swanlab": "swift sft --report_to swanlab",
    "trackio": "swift sft --report_to trackio",
    "bnb": "--quant_method bnb",
    "gptq": "swift export --quant_method gptq or awq",
    "sweep": "swift sweep --sweep_trials",
    "lm-eval": "swift eval --eval_backend lm_eval",
}
"""What an optional dependency is for; the ones for developers are not named here, and not looked for."""
ENOUGH = 0.05
"""Seconds of one matrix product at which larger ones are not tried."""


def examine() -> dict[str, Any]:
    """Everything ``swift doctor`` says, as plain JSON values: sizes in bytes, rates in operations a second."""
    device = hardware.device()
    rates = {name: matmul_rate(device, name) for name in hardware.DTYPES}
    chosen, _ = hardware.choose_dtype(None, "bfloat16", device)
    total, free = hardware_memory(device)
    return {
        "swiftune": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "versions": versions(),
        "device": {"name": device_name(device), "memory_total": total, "memory_free": free, "threads": threads()},
        "dtypes": {name: {"matmul_rate": rate} for name, rate in rates.items()},
        "dtype_chosen": str(chosen).removeprefix("torch."),
        "disk": {str(place): shutil.disk_usage(_existing(place)).free for place in (Path.cwd(), cache_dir())},
        "caches": [{"name": n, "path": str(path), "bytes": folder_size(path)} for n, path in caches().items()],
        "hubs": hubs(),
        "mirror": os.environ.get(MIRROR),
        "problems": problems(),
    }


def matmul_rate(device: torch.device, dtype: str) -> float:
    """Operations a second of a square matrix product, as large as the dtype can bear: fp16 on a CPU bears little."""
    import torch

    best = 0.0
    for size in (128, 256, 512, 1024, 2048, 4096, 8192):
        a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
        took = min(_timed(a) for _ in range(3))
        best = max(best, 2 * size**3 / took)
        if took > ENOUGH:
            break
    return best


def _timed(a: torch.Tensor) -> float:
    import torch

    start = time.perf_counter()
    a @ a
    if a.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def hardware_memory(device: torch.device) -> tuple[int, int]:
    """Total and free memory of the device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[1], hardware.free_memory(device)
    import psutil

    return psutil.virtual_memory().total, hardware.free_memory(device)


def device_name(device: torch.device) -> str:
    """The name of the GPU and how many there are, or of the processor."""
    if device.type == "cuda":
        import torch

        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {_processor()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def threads() -> int:
    """Threads that PyTorch computes with."""
    import torch

    return torch.get_num_threads()


def versions() -> dict[str, str]:
    """The installed version of everything that Swiftune depends on; what is missing is under ``problems``."""
    found = {requirement.name: installed(requirement.name) for requirement, extra in _requirements() if not extra}
    return {name: number for name, number in found.items() if number}


def installed(package: str) -> str | None:
    """The version of a package, or ``None``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def problems() -> list[dict[str, str]]:
    """What is missing or untested: what it is, what it is needed for, and the line that mends it."""
    found = []
    for requirement, extra in _requirements():
        if extra and extra not in EXTRAS:
            continue
        have = installed(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if have and requirement.specifier.contains(have, prereleases=True):
            continue
        found.append(
            {
                "package": requirement.name,
                "state": f"{have}, which is not tested with this Swiftune" if have else "not installed",
                "needed_for": EXTRAS[extra] if extra else "every command",
                "optional": "yes" if extra and not have else "no",
                "install": f"{sys.executable} -m pip install '{wanted}'",
            }
        )
    return found


def _requirements() -> list[tuple[Any, str]]:
    """What Swiftune's own metadata asks for on this Python: the requirement, and the extra it belongs to or ``""``."""
    from packaging.requirements import Requirement

    names = ["", *EXTRAS]
    parsed = [Requirement(line) for line in requires("swiftune") or []]
    return [
        (each, extra)
        for each in parsed
        for extra in names
        if (each.marker.evaluate({"extra": extra}) if each.marker else not extra)
        and (not extra or "extra" in str(each.marker))
    ]


def caches() -> dict[str, Path]:
    """Where things are kept that can be fetched or made again."""
    return {"Swiftune": cache_dir(), "ModelScope": ModelScope().cache(), "Hugging Face": HuggingFace().cache()}


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder, links not followed; 0 where there is none."""
    return sum(os.lstat(os.path.join(where, name)).st_size for where, _, names in os.walk(folder) for name in names)


def hubs() -> list[dict[str, Any]]:
    """The hubs, whether they answer, and the settings that have to do with reaching them."""
    offline = flag("HF_HUB_OFFLINE")
    default = "Hugging Face" if flag("USE_HF") else "ModelScope"
    asked: tuple[Hub, ...] = (ModelScope(), HuggingFace())
    with ThreadPoolExecutor() as pool:
        reached = [False] * len(asked) if offline else list(pool.map(answers, [hub.endpoint() for hub in asked]))
    return [
        {
            "name": hub.title,
            "endpoint": hub.endpoint(),
            "answers": reaches,
            "offline": offline,
            "default": hub.title == default,
        }
        for hub, reaches in zip(asked, reached, strict=True)
    ]


def _existing(place: Path) -> Path:
    """The nearest folder at or above ``place`` that is there."""
    return next(folder for folder in (place, *place.parents) if folder.exists())
