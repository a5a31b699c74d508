"""Arguments of vLLM, which answers where ``--infer_backend vllm`` says so."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Le

from swiftune.config.declare import Arguments, unset
from swiftune.config.values import Count, CountOrZero, File, Tokens

Utilization = Annotated[float, Gt(0), Le(1)]


class VllmArguments(Arguments):
    """vLLM: with --infer_backend vllm."""

    vllm_max_model_len: Tokens | None = unset("the model's context, or what there is room for")
    """Longest prompt and answer together."""
    vllm_gpu_memory_utilization: Utilization | None = unset("vLLM's own on a GPU; on a CPU it gets 4 GiB at most")
    """Share of the GPU's memory that vLLM takes, for weights and for keys and values (on a CPU, of the RAM)."""
    vllm_tensor_parallel_size: Count = 1
    """GPUs that share each layer."""
    vllm_max_num_seqs: Count | None = unset("--max_batch_size where that is given, else vLLM's own")
    """Requests that are worked on at the same time."""
    vllm_max_lora_rank: CountOrZero = 0
    """Highest rank of adapters that are loaded while the engine runs; those of --adapters count by themselves."""
    vllm_enforce_eager: bool = False
    """Start sooner and answer more slowly: compile nothing."""
    vllm_python: File | None = unset("this one, that of $SWIFT_VLLM_PYTHON, or of .venv-vllm beside this environment")
    """The Python that has vLLM. What it needs clashes with others; keep it in an environment of its own."""
