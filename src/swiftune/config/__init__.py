"""The arguments of every command. Imports neither torch nor transformers."""

from __future__ import annotations

from swiftune.config.commands import DoctorArguments, InferArguments, PtArguments, SftArguments
from swiftune.config.declare import Arguments
from swiftune.config.groups import (
    DataArguments,
    GenerateArguments,
    ModelArguments,
    RunArguments,
    TemplateArguments,
)
from swiftune.config.inspect import InspectArguments
from swiftune.config.record import load, save
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
    "Arguments",
    "DataArguments",
    "DoctorArguments",
    "EvaluationArguments",
    "FilterArguments",
    "GenerateArguments",
    "InferArguments",
    "InspectArguments",
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
