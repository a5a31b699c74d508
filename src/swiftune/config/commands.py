"""The arguments of each command: its groups, and the defaults that are its own.

pydantic orders fields from the last base to the first: read the bases from the bottom up.
"""

from __future__ import annotations

from typing import Literal

from swiftune.config.declare import Arguments, unset
from swiftune.config.deploy import LimitArguments, Port, ServerArguments
from swiftune.config.evaluating import EvalArguments, TaskArguments
from swiftune.config.exporting import ExportArguments, MergeLoraArguments
from swiftune.config.groups import (
    DataArguments,
    GenerateArguments,
    ModelArguments,
    RunArguments,
    TemplateArguments,
)
from swiftune.config.inspect import InspectArguments
from swiftune.config.quantization import QuantizeArguments
from swiftune.config.sweep import SweepArguments
from swiftune.config.training import (
    EvaluationArguments,
    FaultArguments,
    FilterArguments,
    LengthArguments,
    OrderArguments,
    OutputArguments,
    TrainArguments,
    TunerArguments,
)
from swiftune.config.values import CommaNumbers, Count, File, PositiveOrZero, Tokens
from swiftune.config.vllm import VllmArguments


class SftArguments(
    RunArguments,
    GenerateArguments,
    EvaluationArguments,
    TaskArguments,
    OutputArguments,
    TrainArguments,
    TunerArguments,
    QuantizeArguments,
    OrderArguments,
    FilterArguments,
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
    """Inference: what runs the model."""

    infer_backend: Literal["transformers", "vllm"] = "transformers"
    """What runs the model."""
    max_batch_size: Count = 1
    """Answers that are written at once."""
    adapter_weights: CommaNumbers = []
    """Weight of each of several --adapters: `0.7,0.3`."""
    max_length: Tokens | None = unset("the model's context")
    """Longest prompt."""


class ResultArguments(Arguments):
    """Answers: where they go."""

    stream: bool | None = unset("true in a chat, false on a data set")
    """Show an answer while it is written."""
    result_path: File | None = unset("a new file in the adapter's folder, or in result/")
    """JSON Lines file for the answers to a data set."""
    load_data_args: bool = False
    """Take the data arguments of the run that made the adapter, so that its validation rows are answered."""


class AnswerArguments(
    VllmArguments, BackendArguments, GenerateArguments, QuantizeArguments, TemplateArguments, ModelArguments
):
    """What every command that answers needs to open its model."""


class InferArguments(ResultArguments, RunArguments, DataArguments, AnswerArguments):
    """Arguments of ``swift infer``."""


class DeployArguments(LimitArguments, ServerArguments, AnswerArguments):
    """Arguments of ``swift deploy``."""

    max_batch_size: Count = 16


class AppArguments(DeployArguments):
    """Arguments of ``swift app``."""

    port: Port = 7860


class DoctorArguments(Arguments):
    """Doctor: how the report is written."""

    as_json: bool = False
    """Write the report as JSON, for programs."""


COMMANDS: dict[str, type[Arguments]] = {
    "sft": SftArguments,
    "pt": PtArguments,
    "infer": InferArguments,
    "inspect": InspectArguments,
    "export": ExportArguments,
    "merge-lora": MergeLoraArguments,
    "sweep": SweepArguments,
    "deploy": DeployArguments,
    "app": AppArguments,
    "eval": EvalArguments,
    "doctor": DoctorArguments,
}
