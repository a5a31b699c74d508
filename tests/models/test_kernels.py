from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swiftune.errors import MissingPackageError
from swiftune.models import kernels
from swiftune.models.load import load_model
from tests.recipes.chats import chats, log_of, run_of, swift, write_jsonl


@pytest.mark.filterwarnings("ignore")  # the compiler warns of itself
@pytest.mark.slow
def test_compiled_layers_compute_the_same(tiny_qwen2: Path) -> None:
    """On a CPU, which no user is given this on: no GPU is at hand."""
    plain, compiled = (load_model(tiny_qwen2, dtype=torch.float32) for _ in range(2))
    assert kernels.compile_layers(compiled) == plain.config.num_hidden_layers
    for length in (7, 12):
        ids = torch.arange(length)[None] + 5
        losses = [model(ids, labels=ids, use_cache=False).loss for model in (plain, compiled)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[1], losses[0])
    for expected, actual in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


def test_ligers_package_is_asked_for(tiny_qwen2: Path) -> None:
    with pytest.raises(MissingPackageError, match="pip install liger-kernel"):
        kernels.use_liger(load_model(tiny_qwen2, dtype=torch.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU for them")
def test_without_a_gpu_kernels_are_left_out(
    tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", chats(2))
    kernels_asked = ("--use_liger_kernel", "true", "--torch_compile", "true")
    line = ("--model", tiny_qwen2, "--dataset", data, "--max_steps", 1, "--output_dir", tmp_path / "out")
    assert swift("sft", *line, *kernels_asked) == 0
    said = capsys.readouterr().err
    assert "--use_liger_kernel" in said
    assert "--torch_compile" in said
    assert log_of(run_of(tmp_path / "out"))
