"""Whether a model can be run on several requests at once: it is tried out.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from swiftune.generate.row import Row
from swiftune.generate.runners import Together, Work
from swiftune.generate.sampling import Chooser
from swiftune.tuners.lineup import Lineup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KNOWN = {"full_attention", "sliding_attention"}
"""What a layer may be: a state that is not keys and values of single tokens could not be kept."""
STRETCHED = ("'dynamic'", "'longrope'")
"""Kinds of rotary embedding whose frequencies are those of the longest of the requests."""
PROMPTS = ((2, 3, 5, 7, 11), (13, 3, 17))


@torch.no_grad()
def serves(model: PreTrainedModel, lineup: Lineup) -> str | None:
    """``None`` where ``Together`` gives the logits that the model itself gives; else why not, for a sentence."""
    config = model.config.get_text_config()
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - KNOWN)
    if odd:
        return f"the model has layers of the kind {odd[0]}"
    if any(kind in str(getattr(config, "rope_parameters", "")) for kind in STRETCHED):
        return "the model's rotary embedding depends on the longest request of a pass"
    if getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder:
        return f"{type(model).__name__} keeps a state of its own"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not use Transformers' attention interface"
    training = model.training
    model.eval()
    try:
        ours, theirs = _ours(model, lineup), _theirs(model, lineup)
    except Exception as error:
        return f"{type(model).__name__} does not go with stored keys and values ({str(error) or type(error).__name__})"
    finally:
        model.train(training)
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    if not off < (1e-3 if exact else 0.1):
        return f"with stored keys and values, {type(model).__name__} gives other logits"
    return None


def _ours(model: PreTrainedModel, lineup: Lineup) -> torch.Tensor:
    """Logits of the last token of each prompt, ``(2, V)``: one of them in parts."""
    runner = Together(model, lineup, 0)
    chooser = Chooser(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, (), None, random.Random(0))
    one, other = (Row(list(p), 1, chooser, frozenset(), None, lineup.default, print) for p in PROMPTS)  # type: ignore[arg-type]
    with runner.serving():
        runner.begin(one, [])
        runner.run([Work(one, 3)])
        runner.begin(other, [])
        runner.run([Work(one, 1), Work(other, 2)])
        return runner.run([Work(one, 1), Work(other, 1)]).float()


def _theirs(model: PreTrainedModel, lineup: Lineup) -> torch.Tensor:
    rows = []
    for prompt in PROMPTS:
        ids_1T = torch.tensor([prompt], device=model.device)
        with lineup.using([(lineup.default, len(prompt))]):
            rows.append(model(input_ids=ids_1T, use_cache=False).logits[0, -1].float())
    return torch.stack(rows)
