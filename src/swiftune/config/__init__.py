"""The arguments of every command. Imports neither torch nor transformers."""

from __future__ import annotations

from swiftune.config.commands import (
    AnswerArguments,
    AppArguments,
    DeployArguments,
    DoctorArguments,
    InferArguments,
    PtArguments,
    SftArguments,
)
from swiftune.config.declare import Arguments
from swiftune.config.evaluating import EvalArguments, TaskArguments
from swiftune.config.exporting import ExportArguments, MergeLoraArguments
from swiftune.config.groups import (
    DataArguments,
    GenerateArguments,
    ModelArguments,
    RunArguments,
    SourceArguments,
    TemplateArguments,
)
from swiftune.config.inspect import InspectArguments
from swiftune.config.quantization import QuantizeArguments
from swiftune.config.record import load, save
from swiftune.config.sweep import SweepArguments
from swiftune.config.training import (
    EvaluationArguments,
    FilterArguments,
    LengthArguments,
    OrderArguments,
    OutputArguments,
    TrainArguments,
    TunerArguments,
)

__all__ = [
    "AnswerArguments",
    "AppArguments",
    "Arguments",
    "DataArguments",
    "DeployArguments",
    "DoctorArguments",
    "EvalArguments",
    "EvaluationArguments",
    "ExportArguments",
    "FilterArguments",
    "GenerateArguments",
    "InferArguments",
    "InspectArguments",
    "LengthArguments",
    "MergeLoraArguments",
    "ModelArguments",
    "OrderArguments",
    "OutputArguments",
    "PtArguments",
    "QuantizeArguments",
    "RunArguments",
    "SftArguments",
    "SourceArguments",
    "SweepArguments",
    "TaskArguments",
    "TemplateArguments",
    "TrainArguments",
    "TunerArguments",
    "load",
    "save",
]
