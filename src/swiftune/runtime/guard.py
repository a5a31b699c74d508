"""Runs a command that ends when the process that started it does, however that one ends: a script of its own.

``python -I guard.py FOLDER COMMAND ...``: stdin is a pipe whose other end the starter holds. When it closes, the
command and all that it started are told to end, and killed after ``GRACE`` seconds; then ``FOLDER``, which held what
they needed, is removed. Nothing but the standard library, and nothing of this package, is imported.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE = 5.0


def main() -> int:
    """Returns the command's exit code."""
    folder, command = sys.argv[1], sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the pipe decides; the command gets the defaults
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_starter, args=(child.pid,), daemon=True).start()
    code = child.wait()
    _tell(child.pid, signal.SIGKILL)  # what it has left behind
    shutil.rmtree(folder, ignore_errors=True)
    return 128 - code if code < 0 else code


def _end_with_starter(group: int) -> None:
    while os.read(0, 4096):
        pass
    _tell(group, signal.SIGTERM)
    time.sleep(GRACE)
    _tell(group, signal.SIGKILL)


def _tell(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
