"""When Python looks for garbage that reference counts leave behind: not while a command imports what it needs.

Importing PyTorch, Transformers and PEFT makes 360,000 objects and no garbage; by default Python goes through all of
them again and again while they come, and once more at exit.
"""

from __future__ import annotations

import atexit
import gc

OFTEN = gc.get_threshold()
RARELY = (50_000, 10, 10)


def look_rarely() -> None:
    """For the time of loading. At exit nothing is looked for: what has to be closed is closed before."""
    gc.set_threshold(*RARELY)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def look_as_usual() -> None:
    """Sets what has been loaded aside for good, and looks among what comes from here on as often as Python does."""
    gc.freeze()
    gc.set_threshold(*OFTEN)
