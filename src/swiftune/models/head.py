"""A causal language model taken apart: the body that gives hidden states, and the head that turns them into logits.

Training runs the head on supervised positions only, so it must know what the model does after its last hidden state.
That is a linear layer and, in a few families, a scale or a soft cap named in the configuration; ``split`` checks on a
few tokens that body and head together are the model.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from swiftune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """Hidden states to logits: ``softcap * tanh(scale * linear(h) / softcap)``, the cap where there is one."""

    linear: torch.nn.Module
    scale: float
    softcap: float | None

    def __call__(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        logits_TV: torch.Tensor = self.linear(hidden_TD)
        if self.scale != 1.0:
            logits_TV = logits_TV * self.scale
        if self.softcap is not None:
            logits_TV = self.softcap * torch.tanh(logits_TV / self.softcap)
        return logits_TV

    def trainable(self) -> list[torch.nn.Parameter]:
        """The head's parameters that are trained."""
        return [p for p in self.linear.parameters() if p.requires_grad]


def split(model: PreTrainedModel) -> tuple[torch.nn.Module, Head]:
    """Body and head of a causal language model (with or without PEFT's layers inside).

    Raises:
        ModelError: body and head do not give the model's own logits.
    """
    config = model.config
    # Granite divides its logits by ``logits_scaling``, Cohere multiplies them by ``logit_scale``.
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    head = Head(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))
    body = getattr(model, model.base_model_prefix)
    was_training = model.training
    model.eval()
    half = model.dtype in (torch.float16, torch.bfloat16)
    with torch.no_grad(), torch.autocast(model.device.type, model.dtype if half else torch.bfloat16, enabled=half):
        states: list[torch.Tensor] = []
        hook = body.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
        whole = model(input_ids=torch.arange(4, device=model.device)[None], use_cache=False).logits
        hook.remove()
        parts = head(*states)
    model.train(was_training)
    if not torch.allclose(whole.float(), parts.float(), rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{type(model).__name__} does something after its last hidden state that training does not know.",
            "Models whose logits are a linear layer, a scale and a soft cap can be trained.",
        )
    return body, head
