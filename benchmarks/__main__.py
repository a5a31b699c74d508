"""``make bench``: every benchmark, one after the other, each in a process of its own.

``quality`` trains for minutes, and is run by itself: ``python -m benchmarks.quality --dataset FILE``.
"""

import subprocess
import sys

for name in ("training", "lora_layers", "loss", "attention", "startup", "tokenizing", "serving"):
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
