"""Kernels of others, on request, for GPUs: Liger's, and those that ``torch.compile`` makes. No GPU has run them yet."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from swiftune.errors import MissingPackageError


def use_liger(model: torch.nn.Module) -> None:
    """Gives a model Liger's norms, rotary embedding and activation, in place (arXiv:2410.10989).

    Models that Liger does not know stay as they are; it says so itself. Head and loss stay ours.

    Raises:
        MissingPackageError: it is not installed.
    """
    from transformers.integrations.liger import apply_liger_kernel

    if not find_spec("liger_kernel"):
        raise MissingPackageError("--use_liger_kernel true needs a package.", "Install it: pip install liger-kernel")
    ours = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    apply_liger_kernel(model, {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True} | ours)


def compile_layers(model: torch.nn.Module) -> int:
    """Compiles each decoder layer by itself, in place: the layers are alike, so one is compiled for all.

    Returns how many there are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)
