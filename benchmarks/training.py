"""Training throughput beside plain Transformers + PEFT: ``python -m benchmarks.training``.

The built-in model, LoRA 8/32 on all linear layers, bfloat16, 8 rows a step: packed rows, our LoRA layers, head and
loss on supervised tokens; against PEFT's layers and Transformers' loss, one row at a time, as batch 1 x 8 is run
elsewhere. Both in this process, in turn, so that the ratio holds where the machine's speed drifts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from swiftune import hub
from swiftune.config import SftArguments
from swiftune.models.load import load_model
from swiftune.train.objective import SupervisedObjective
from swiftune.train.pack import pack
from swiftune.train.plan import plan_step
from swiftune.tuners import attach_lora, speed_up
from swiftune.types import IGNORE, Row

ROWS, BUDGET, REPEATS = 8, 2048, 3
CPU = torch.device("cpu")


def rows(lengths: list[int]) -> list[Row]:
    """Random rows whose second half is supervised."""
    rng = np.random.default_rng(0)
    made = []
    for length in lengths:
        ids = rng.integers(1000, 40000, length).astype(np.int32)
        labels = ids.copy()
        labels[: length // 2] = IGNORE
        made.append(Row(ids, labels, (length,)))
    return made


def tuned() -> Any:
    """The model with LoRA, the same in every call."""
    torch.manual_seed(0)
    model = attach_lora(load_model(hub.find_model(None), dtype=torch.bfloat16), SftArguments())
    return model.train()


def ours(step: list[Row]) -> Callable[[], None]:
    """One step as ``swift sft`` runs it."""
    model = tuned()
    speed_up(model)
    objective = SupervisedObjective(model).train()

    def run() -> None:
        for positions in plan_step([len(row.ids_T) for row in step], budget=BUDGET)[0]:
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(pack([step[i] for i in positions], CPU)).loss
            loss.backward()
        model.zero_grad()

    return run


def plain(step: list[Row]) -> Callable[[], None]:
    """The same step by Transformers and PEFT alone."""
    model = tuned()

    def run() -> None:
        for row in step:
            ids, labels = (torch.from_numpy(array.astype(np.int64))[None] for array in (row.ids_T, row.labels_T))
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            loss.backward()
        model.zero_grad()

    return run


def main() -> None:
    """Prints the table."""
    mixed = [int(length) for length in np.random.default_rng(1).lognormal(5, 0.8, ROWS).clip(20, 1024)]
    title = f"training throughput, LoRA, {torch.get_num_threads()} CPU threads"
    table = Table("rows", "tokens", "plain tokens/s", "ours tokens/s", "ratio", title=title)
    for name, lengths in ((f"{ROWS} of 50", [50] * ROWS), (f"{ROWS} of 400", [400] * ROWS), ("a mixture", mixed)):
        step = rows(lengths)
        contenders = plain(step), ours(step)
        times: list[list[float]] = [[], []]
        for run in contenders:
            run()
        for _ in range(REPEATS):
            for run, seconds in zip(contenders, times, strict=True):
                began = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - began)
        tokens = sum(lengths)
        a, b = (tokens / statistics.median(seconds) for seconds in times)
        ratio = statistics.median(p / o for p, o in zip(*times, strict=True))
        table.add_row(name, f"{tokens:,}", f"{a:.0f}", f"{b:.0f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
