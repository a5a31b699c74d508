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
    "AnswerArguments",
    "AppArguments",
    "Arguments",
    "DataArguments",
    "DeployArguments",
    "DoctorArguments",
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
    "TemplateArguments",
    "TrainArguments",
    "TunerArguments",
    "load",
    "save",
]
