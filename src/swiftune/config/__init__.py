"""The arguments of every command. Imports neither torch nor transformers."""

from __future__ import annotations

from swiftune.config.commands import DoctorArguments, InferArguments, PtArguments, SftArguments
from swiftune.config.declare import Arguments
from swiftune.config.evaluating import EvalArguments, TaskArguments
from swiftune.config.groups import (
    DataArguments,
    GenerateArguments,
    ModelArguments,
    RunArguments,
    TemplateArguments,
)
from swiftune.config.record import load, save
from swiftune.config.training import (
    EvaluationArguments,
    LengthArguments,
    OrderArguments,
    OutputArguments,
    TrainArguments,
    TunerArguments,
)

__all__ = [
    "Arguments",
    "DataArguments",
    "DoctorArguments",
    "EvalArguments",
    "EvaluationArguments",
    "GenerateArguments",
    "InferArguments",
    "LengthArguments",
    "ModelArguments",
    "OrderArguments",
    "OutputArguments",
    "PtArguments",
    "RunArguments",
    "SftArguments",
    "TaskArguments",
    "TemplateArguments",
    "TrainArguments",
    "TunerArguments",
    "load",
    "save",
]
