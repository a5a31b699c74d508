"""What happens when memory runs out in spite of the plan: the same work again, in micro-batches of half the size."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from swiftune.errors import OutOfMemoryError
from swiftune.runtime.console import warn
from swiftune.train.plan import Layout
from swiftune.types import Row

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def within_memory(
    compute: Callable[[list[list[list[Row]]]], T],
    rows: Sequence[Row],
    layout: Layout,
    accelerator: Accelerator,
    undo: Callable[[], None] = lambda: None,
) -> T:
    """What ``compute`` makes of the micro-batches of each lane of this process.

    Where they do not fit, ``layout.budget`` is lowered until they do.

    All processes agree on whether the work is done again, so ``compute`` may not wait for another process.

    Args:
        rows: of all processes.
        undo: called after ``compute`` has failed, in this process or in another.

    Raises:
        OutOfMemoryError: every micro-batch has one row already.
    """
    while True:
        plans = layout.plan(rows)
        failed, result = False, None
        try:
            first = accelerator.process_index * layout.lanes
            lanes = plans[first : first + layout.lanes]
            result = compute([[[rows[i] for i in batch] for batch in lane] for lane in lanes])
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            failed = True
        # Only now is the error gone, and with it the frames that hold what was computed.
        if not _in_any_process(failed, accelerator):
            return result  # type: ignore[return-value]
        undo()
        gc.collect()
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        lengths = [len(row.ids_T) for row in rows]
        largest = max((sum(lengths[i] for i in b) for plan in plans for b in plan if len(b) > 1), default=0)
        if not largest:
            raise OutOfMemoryError(
                f"Memory ran out with one row at a time, the longest of {max(lengths)} tokens.",
                "Compute activations again (--gradient_checkpointing true), or set a lower --max_length.",
            )
        layout.budget = largest // 2
        if accelerator.is_main_process:
            warn(
                f"Memory ran out with {largest} tokens in a micro-batch. The step is done again, and the run goes on, "
                f"with at most {layout.budget}."
            )


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that there was not enough memory, on whatever device."""
    from accelerate.utils.memory import should_reduce_batch_size

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def _in_any_process(failed: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return failed
    return bool(accelerator.reduce(torch.tensor(int(failed), device=accelerator.device), "sum"))
