"""What stands between a command and its first step. Seconds are noise on a busy machine; what is imported is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.chats import Flags, chats, words, write_jsonl

PROBE = """
import gc, json, sys
from swiftune.cli import main
from swiftune.runtime import garbage

def look(go_on=garbage.look_as_usual):  # called when all is loaded, right before the first step
    go_on()
    found = {
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "searches": [generation["collections"] for generation in gc.get_stats()],
        "set_aside": gc.get_freeze_count(),
        "thresholds": gc.get_threshold(),
    }
    print(json.dumps(found))
    sys.exit(0)

words = sys.argv[1:]
main._run([words[0], "--help"])
assert "torch" not in sys.modules and "transformers" not in sys.modules
garbage.look_as_usual = look
sys.exit(main.main(words))
"""


@pytest.fixture
def flags(tiny_qwen2: Path, tmp_path: Path) -> Flags:
    return {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(4)),
        "torch_dtype": "float32",
        "output_dir": tmp_path / "out",
    }


def at_the_first_step(flags: Flags) -> dict[str, Any]:
    """The state of a process of ``swift sft`` when its first step begins."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "sft", *words(flags)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_step_waits_for_nothing_that_it_does_not_need(flags: Flags) -> None:
    found = at_the_first_step(flags | {"report_to": "none"})
    assert {"torch", "peft"} <= set(found["modules"])
    late = {"matplotlib", "tensorboard", "pandas", "scipy", "sklearn", "datasets", "modelscope", "modelscope_hub"}
    other = {"rouge_score", "sacrebleu", "jieba", "gguf", "pytorch_optimizer", "prompt_toolkit", "torchvision"}
    assert not (late | other) & set(found["modules"])


def test_garbage_is_hardly_looked_for_while_loading_and_as_usual_while_training(flags: Flags) -> None:
    found = at_the_first_step(flags)
    young, _, full = found["searches"]
    assert young < 100, "the imports are searched again and again"
    assert full <= 2
    assert found["set_aside"] > 100_000
    usual = subprocess.run([sys.executable, "-c", "import gc; print(gc.get_threshold())"], capture_output=True)
    assert str(tuple(found["thresholds"])) == usual.stdout.decode().strip()
