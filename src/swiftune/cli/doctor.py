"""What ``swift doctor`` found, as text or as JSON, on stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from swiftune.recipes.doctor import examine

if TYPE_CHECKING:
    from swiftune.config import DoctorArguments


def doctor(args: DoctorArguments) -> int:
    """Shows the report; 1 where something that every command needs is missing."""
    report = examine()
    if args.as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _show(report)
    return int(
        any(problem["optional"] == "no" and "not installed" in problem["state"] for problem in report["problems"])
    )


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)  # a line to copy stays one line
    for title, rows in sections(report).items():
        console.print(f"[bold]{title}[/]")
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            console.print(f"  [cyan]{escape(name):<{width}}[/]  {escape(value)}")


def sections(report: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The report as rows of two columns, by heading."""
    device, chosen = report["device"], report["dtype_chosen"]
    best = max(each["matmul_rate"] for each in report["dtypes"].values())
    machine = [
        ("device", f"{device['name']}, {device['threads']} threads"),
        ("memory", f"{_size(device['memory_free'])} free of {_size(device['memory_total'])}"),
        *((f"disk at {place}", f"{_size(free)} free") for place, free in report["disk"].items()),
    ]
    dtypes = [
        (
            name,
            f"{each['matmul_rate'] / 1e9:,.1f} GFLOP/s in matrix products"
            + (", too slow to train in" if each["matmul_rate"] < best / 50 else "")
            + (" (taken for a bfloat16 model)" if name == chosen else ""),
        )
        for name, each in report["dtypes"].items()
    ]
    places = [(f"{each['name']} cache", f"{_size(each['bytes'])} in {each['path']}") for each in report["caches"]]
    places += [(each["name"], _reach(each)) for each in report["hubs"]]
    places.append(("local mirror", report["mirror"] or "none ($SWIFT_LOCAL_HUB is not set)"))
    software = [("swiftune", report["swiftune"]), ("python", report["python"]), ("system", report["system"])]
    found = [
        (each["package"], f"{each['state']}; needed for {each['needed_for']}: {each['install']}")
        for each in report["problems"]
    ]
    return {
        "Machine": machine,
        "Dtypes": dtypes,
        "Models and data": places,
        "Software": [*software, *report["versions"].items()],
        "Missing": found or [("nothing", "every command has what it needs")],
    }


def _reach(hub: dict[str, Any]) -> str:
    state = (
        "not asked (HF_HUB_OFFLINE is set)" if hub["offline"] else "answers" if hub["answers"] else "does not answer"
    )
    return f"{hub['endpoint']} {state}" + (", asked where nothing else is said" if hub["default"] else "")


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
