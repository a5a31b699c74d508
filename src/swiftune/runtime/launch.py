"""Several processes on one or more machines, from the environment variables that scripts for ms-swift set."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

_FLAGS = {
    "NPROC_PER_NODE": "--nproc_per_node",
    "NNODES": "--nnodes",
    "NODE_RANK": "--node_rank",
    "MASTER_ADDR": "--master_addr",
    "MASTER_PORT": "--master_port",
}


def is_main_process() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def relaunch(words: Sequence[str]) -> int | None:
    """Runs the same command in ``NPROC_PER_NODE`` processes through torchrun, where that is asked for.

    Returns:
        The exit code, or ``None`` where this process is to do the work itself.
    """
    if "LOCAL_RANK" in os.environ or not {"NPROC_PER_NODE", "NNODES"} & os.environ.keys():
        return None
    flags = [word for name, flag in _FLAGS.items() if name in os.environ for word in (flag, os.environ[name])]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "swiftune.cli.main", *words]
    with subprocess.Popen(command, env=_threads() | os.environ) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the processes have it from the terminal, too, and save what they have
                continue


def _threads() -> dict[str, str]:
    """The processors, shared out; left to itself torchrun gives each process one, and says so at length."""
    count = os.environ.get("NPROC_PER_NODE", "1")
    processes = int(count) if count.isdigit() else 1
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(processes, 1)))}
