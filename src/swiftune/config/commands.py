"""The arguments of each command: its groups, and the defaults that are its own.

pydantic orders fields from the last base to the first: read the bases from the bottom up.
"""

from __future__ import annotations

from typing import Literal

from swiftune.config.declare import Arguments, unset
from swiftune.config.exporting import ExportArguments, MergeLoraArguments
from swiftune.config.groups import (
    DataArguments,
    GenerateArguments,
    ModelArguments,
    RunArguments,
    TemplateArguments,
)
from swiftune.config.quantization import QuantizeArguments
from swiftune.config.training import (
    EvaluationArguments,
    FaultArguments,
    LengthArguments,
    OrderArguments,
    OutputArguments,
    TrainArguments,
    TunerArguments,
)
from swiftune.config.values import CommaNumbers, Count, File, PositiveOrZero, Tokens


class SftArguments(
    RunArguments,
    GenerateArguments,
    EvaluationArguments,
    OutputArguments,
    TrainArguments,
    TunerArguments,
    QuantizeArguments,
    OrderArguments,
    FaultArguments,
    DataArguments,
    LengthArguments,
    TemplateArguments,
    ModelArguments,
):
    """Arguments of ``swift sft``."""

    max_new_tokens: Tokens | None = 64
    temperature: PositiveOrZero | None = 0.0


class PtArguments(SftArguments):
    """Arguments of ``swift pt``."""

    loss_scale: Literal["default", "last_round", "all"] = "all"


class BackendArguments(Arguments):
    """Inference: what runs the model, and where the answers go."""

    stream: bool | None = unset("true in a chat, false on a data set")
    """Show an answer while it is written."""
    infer_backend: Literal["transformers", "vllm"] = "transformers"
    """What runs the model."""
    max_batch_size: Count = 1
    """Rows of a data set that are answered at once."""
    result_path: File | None = unset("a new file in the adapter's folder, or in result/")
    """JSON Lines file for the answers to a data set."""
    load_data_args: bool = False
    """Take the data arguments of the run that made the adapter, so that its validation rows are answered."""
    adapter_weights: CommaNumbers = []
    """Weight of each of several --adapters: `0.7,0.3`."""
    max_length: Tokens | None = unset("the model's context")
    """Longest prompt."""
    vllm_max_model_len: Tokens | None = unset("the model's context")
    """With --infer_backend vllm: longest prompt and answer together."""


class InferArguments(
    BackendArguments,
    RunArguments,
    GenerateArguments,
    QuantizeArguments,
    DataArguments,
    TemplateArguments,
    ModelArguments,
):
    """Arguments of ``swift infer``."""


class DoctorArguments(Arguments):
    """Doctor: how the report is written."""

    as_json: bool = False
    """Write the report as JSON, for programs."""


COMMANDS: dict[str, type[Arguments]] = {
    "sft": SftArguments,
    "pt": PtArguments,
    "infer": InferArguments,
    "export": ExportArguments,
    "merge-lora": MergeLoraArguments,
    "doctor": DoctorArguments,
}
