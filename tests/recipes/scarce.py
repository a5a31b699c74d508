"""``swift`` with little memory left once training begins: ``python -m tests.recipes.scarce MIB sft --model ...``."""

from __future__ import annotations

import resource
import sys

import numpy as np
import psutil
from matplotlib import figure  # noqa: F401 - what is loaded later would need memory too
from matplotlib.backends import backend_agg  # noqa: F401

from swiftune.cli.main import main
from swiftune.train.checkpoint import TrainerState
from swiftune.train.loop import Trainer


def multiply() -> None:
    """What pictures are drawn with; of matrices so large that OpenBLAS takes a buffer for them."""
    np.ones((512, 512)) @ np.ones((512, 512))


def train_with_little(mib: int) -> None:
    """Lets the trainer's process allocate no more than ``mib`` MiB from when it begins."""
    train = Trainer.train

    def limited(self: Trainer) -> TrainerState:
        # OpenBLAS takes its buffers, one for each thread that multiplies, and ends the process where it cannot.
        multiply()
        self.saver.start(multiply)
        self.saver.wait()
        most = psutil.Process().memory_info().vms + mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        return train(self)

    Trainer.train = limited  # type: ignore[method-assign]


if __name__ == "__main__":
    if int(sys.argv[1]):
        train_with_little(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
