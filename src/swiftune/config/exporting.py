"""Arguments of ``swift export`` and ``swift merge-lora``."""

from __future__ import annotations

from typing import Literal

from swiftune.config.declare import Arguments, unset
from swiftune.config.groups import DataArguments, ModelArguments, TemplateArguments
from swiftune.config.quantization import QuantizeArguments
from swiftune.config.values import Bytes, CommaNumbers, Count, Folder, Name, Rows, Tokens


class TargetArguments(Arguments):
    """Export: what is written, and where."""

    merge_lora: bool = False
    """Add the updates of --adapters to the model's weights. Quantizing does so unasked."""
    adapter_weights: CommaNumbers = []
    """Weight of each of several --adapters: `0.7,0.3`."""
    output_dir: Folder | None = unset("the checkpoint's or model's name with -merged, -bnb-int4 and the like behind it")
    """Folder that is written."""
    exist_ok: bool = False
    """Replace --output_dir where it is there already."""
    max_shard_size: Bytes = "5GB"
    """Largest file of weights."""
    max_length: Tokens = 2048
    """Longest row that the model is measured, or calibrated, on."""


class CalibrationArguments(Arguments):
    """Calibration: rows that gptq and awq look at, and that perplexity is taken on with any method."""

    quant_n_samples: Rows = 256
    """Most rows of --dataset that are looked at."""
    group_size: Count = 128
    """With gptq and awq: weights that share a scale."""


class HubArguments(Arguments):
    """Hub: putting the result on ModelScope, or on Hugging Face with --use_hf true."""

    push_to_hub: bool = False
    """Upload what was written; with --adapters and nothing else to do, the adapter itself. The token is taken from the
    environment: MODELSCOPE_API_TOKEN or HF_TOKEN."""
    hub_model_id: Name | None = unset("needed with --push_to_hub")
    """Repository there, org/name; made if there is none."""
    hub_private_repo: bool = False
    """Make it a private one."""
    commit_message: Name = "Upload by Swiftune"
    """What the repository's history says of it."""


class ExportArguments(
    HubArguments,
    CalibrationArguments,
    QuantizeArguments,
    TargetArguments,
    DataArguments,
    TemplateArguments,
    ModelArguments,
):
    """Arguments of ``swift export``."""

    quant_method: Literal["bnb", "gptq", "awq", "fp8"] | None = unset("none")  # type: ignore[assignment]
    """Write a quantized copy: by bitsandbytes (`bnb`), GPTQModel (`gptq`, `awq`) or Transformers (`fp8`)."""


class MergeLoraArguments(ExportArguments):
    """Arguments of ``swift merge-lora``."""

    merge_lora: bool = True
