"""A model written as a folder that any program opens: weights in shards, tokenizer, chat template, where to stop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    chat_template: str | dict[str, str] | None,
    stop_ids: Sequence[int],
    max_shard_size: str,
) -> None:
    """Writes all of it into ``folder``.

    Args:
        stop_ids: tokens at which generation ends, beside those that the model's generation_config names.
    """
    model.generation_config = _stopping(model.generation_config, stop_ids, tokenizer.pad_token_id)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(tokenizer, folder, chat_template)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, template: str | dict[str, str] | None) -> None:
    """Writes the tokenizer with this chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def _stopping(own: GenerationConfig, stop_ids: Sequence[int], pad_id: int | None) -> GenerationConfig:
    config = copy.deepcopy(own)
    eos = own.eos_token_id
    known = [eos] if isinstance(eos, int) else list(eos or ())
    config.eos_token_id = list(dict.fromkeys([*stop_ids, *known])) or None
    if config.pad_token_id is None:
        config.pad_token_id = pad_id
    if not config.do_sample:  # Transformers does not save settings that do nothing
        for name in _OF_SAMPLING:
            setattr(config, name, None)
    return config


def unlike_saved(model: PreTrainedModel, folder: Path) -> Iterator[str]:
    """The names of tensors in ``folder`` that are not, bit for bit, what ``model`` has by that name."""
    from safetensors import safe_open

    state = model.state_dict()
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name in state and not torch.equal(file.get_tensor(name), state[name].cpu()):
                    yield name


def weights_size(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.gguf") for file in folder.glob(pattern))
