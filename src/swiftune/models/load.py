"""A model folder in, a Transformers model out; every way in which a folder can be wrong is said in a sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.errors import ModelError, UsageError
from swiftune.models import quantize

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin


_SAMPLE = 64
"""Bytes of each tensor in a fingerprint."""
BAR_FROM = 2**31
"""Bytes of weights from which loading shows a progress bar."""


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    attn_impl: str | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    quantization: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """Loads a causal language model.

    Args:
        path: a Hugging Face folder with safetensors weights, or with one GGUF file.
        dtype: of the weights in memory.
        attn_impl: a Transformers attention implementation; ``None`` leaves it to Transformers: PyTorch's own (``sdpa``)
            where the model can.
        quantization: how the linear layers are quantized while they are loaded (``models.quantize``).

    Raises:
        ModelError: the folder is no model, or its weights are missing, truncated or of another shape.
    """
    import transformers
    from transformers.utils import logging

    check_folder(path)
    quantize.bring_for(read_config(path) if (path / "config.json").exists() else {})
    if sum(file.stat().st_size for file in path.glob("*.safetensors")) < BAR_FROM:
        logging.disable_progress_bar()
    kwargs: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    gguf = sorted(path.glob("*.gguf"))
    if gguf and not list(path.glob("*.safetensors")):
        kwargs["gguf_file"] = gguf[0].name
        if hasattr(transformers, "GgufConfig"):  # newer ones keep the weights packed unless told otherwise
            kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        kwargs |= {"use_safetensors": True}
    if quantization is not None:
        kwargs |= {"quantization_config": quantization, "device_map": {"": device}}
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            path, attn_implementation=attn_impl, output_loading_info=True, **kwargs
        )
    except MemoryError:
        raise
    except Exception as error:  # a configuration can be wrong in as many ways as there are architectures
        if attn_impl and attn_impl.startswith("flash"):
            raise UsageError(
                f"--attn_impl {attn_impl} cannot be used here: {first_line(error)}", "Use --attn_impl sdpa."
            ) from error
        raise ModelError(f"The model in {path} cannot be loaded: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights in {path} lack {len(missing)} tensors of the architecture in config.json, "
            f"{missing[0]} among them.",
            "Fetch the model again, or check that config.json belongs to these weights.",
        )
    return model if getattr(model, "is_quantized", False) else model.to(device)


def check_folder(path: Path) -> None:
    """Raises ModelError unless ``path`` looks like a whole model folder. Reads headers only."""
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder.", "A model is a folder with config.json and safetensors weights.")
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise ModelError(f"{path} holds an adapter, not a model.", f"Use --adapters {path}.")
    if list(path.glob("*.gguf")):
        return
    if not (path / "config.json").exists():
        raise ModelError(f"{path} has no config.json.", "A model is a folder with config.json and safetensors weights.")
    read_config(path)
    if (path / "generation_config.json").exists():  # Transformers would go on without one that it cannot read
        _read_json(path / "generation_config.json")
    shards = _shards(path)
    if not shards:
        pickles = sorted(p.name for p in [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
        found = f" It has {pickles[0]}, a pickle, which is not read." if pickles else ""
        raise ModelError(f"{path} has no weights (*.safetensors or *.gguf).{found}")
    for shard in shards:
        _check_safetensors(shard)


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a model folder."""
    config = _read_json(path / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{path / 'config.json'} names no model_type.", "It is not a Transformers model's config.")
    return config


def fingerprint(path: Path) -> tuple[str, ...]:
    """What tells a model's weights from others', whatever the shards: names, shapes, and some bytes of each tensor."""
    seen = []
    for shard in _shards(path):
        with shard.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    stream.seek(8 + length + tensor["data_offsets"][0])
                    size = min(_SAMPLE, tensor["data_offsets"][1] - tensor["data_offsets"][0])
                    seen.append(f"{name} {tensor['dtype']} {tensor['shape']} {stream.read(size).hex()}")
    return tuple(sorted(seen))


def generation_config(path: Path) -> GenerationConfig:
    """What a loaded model has for ``generation_config``, without loading it."""
    from transformers import AutoConfig, GenerationConfig

    if (path / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(path, local_files_only=True))


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{file} cannot be read: {first_line(error)}", "Fetch the model again.") from error


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return sorted(path.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read: {first_line(error)}") from error
    absent = [name for name in names if not (path / name).exists()]
    if absent:
        raise ModelError(f"{path} lacks {absent[0]}, which {index.name} names.", "Fetch the model again.")
    return [path / name for name in names]


def _check_safetensors(file: Path) -> None:
    """A safetensors file is 8 bytes of header length, the header, and the tensors; the header says where they end."""
    size = file.stat().st_size
    broken = ModelError(f"{file} is truncated or no safetensors file ({size:,} bytes).", "Fetch the model again.")
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise broken
        (length,) = struct.unpack("<Q", start)
        if 8 + length > size:
            raise broken
        try:
            header = json.loads(stream.read(length))
            end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
            whole = 8 + length + end == size
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
            raise broken from error
    if not whole:
        raise broken


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
