"""Micro-batches side by side on a CPU: lanes, each a thread with its share of the cores.

An operation that all cores share makes them wait for each other at its end, and between two operations one core works
alone. Two lanes of one core each trained 11% more tokens a second than one of two (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from swiftune.runtime.seeds import drawing_from
from swiftune.train.pack import pack
from swiftune.types import Row

CPU = torch.device("cpu")
T = TypeVar("T")


class Lanes:
    """Does the same work in every lane at once.

    Args:
        count: lanes; with one, the work is done in the thread that asks for it, with all cores.
    """

    def __init__(self, count: int = 1) -> None:
        self.count, self.threads = count, torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane") if count > 1 else None

    def run(self, work: Callable[[int], T]) -> list[T]:
        """What ``work`` makes of the number of each lane. Lanes draw from generators seeded by the default one.

        Raises whatever the first lane in which something went wrong has raised, once all have ended.
        """
        if self._pool is None:
            return [work(0)]
        seeds = torch.randint(2**62, (self.count,)).tolist()
        futures = [self._pool.submit(self._lane, work, lane, seed) for lane, seed in enumerate(seeds)]
        wait(futures)
        torch.set_num_threads(self.threads)  # for what this thread does alone; MKL's number is one for all threads
        return [future.result() for future in futures]

    def _lane(self, work: Callable[[int], T], lane: int, seed: int) -> T:
        torch.set_num_threads(max(1, self.threads // self.count))
        with drawing_from(torch.Generator().manual_seed(seed)):
            return work(lane)


def fitting(model: torch.nn.Module, device: torch.device, processes: int) -> int:
    """How many lanes a model can be trained in.

    One where there is a GPU, or several processes, or one core; where weights of the model itself are trained, whose
    gradients every lane would hold; and where anything but our own dropout draws random numbers.
    """
    if device.type != "cpu" or processes > 1 or torch.get_num_threads() < 2 or not hasattr(model, "peft_config"):
        return 1
    if getattr(model.config.get_text_config(), "attention_dropout", 0.0):  # type: ignore[union-attr, operator]
        return 1
    for name, module in model.named_modules():
        ours = "forward" in vars(model.get_submodule(name.rpartition(".lora_dropout")[0]))
        if isinstance(module, torch.nn.Dropout) and module.p and not ours:
            return 1
    return 2


def side_by_side(
    lanes: Lanes, objective: torch.nn.Module, work: list[list[list[Row]]], supervised: int, *, share: bool = False
) -> torch.Tensor:
    """Sets the gradient of a step. Each lane has gradients of its own, added up in one order, whoever was first.

    Args:
        work: the micro-batches of each lane.
        supervised: tokens that the loss of the step is divided by.
        share: compute what all rows of a micro-batch begin with once.

    Returns:
        Its sums: loss, right predictions.
    """
    trained = [p for p in objective.parameters() if p.requires_grad]

    def lane(number: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        total = torch.zeros(2, dtype=torch.float64)
        grads: list[torch.Tensor] = []
        for rows in work[number]:
            sums = objective(pack(rows, CPU, share=share))
            found = list(torch.autograd.grad(sums.loss / max(supervised, 1), trained, materialize_grads=True))
            if grads:
                torch._foreach_add_(grads, found)
            grads = grads or found
            total += torch.stack([sums.loss.detach(), sums.correct]).to(total)
        return total, grads

    (total, grads), *others = lanes.run(lane)
    for more, added in others:
        total += more
        torch._foreach_add_(grads, added)
    for parameter, grad in zip(trained, grads, strict=True):
        parameter.grad = grad
    return total
