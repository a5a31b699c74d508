"""What is minimised: from a micro-batch to sums that the loop divides once per step.

Shapes: T tokens of the micro-batch, S of them supervised, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from swiftune.errors import ModelError
from swiftune.losses.cross_entropy import linear_cross_entropy
from swiftune.models import attention, head
from swiftune.models.gates import spare_gates
from swiftune.models.norms import speed_up_norms
from swiftune.runtime.seeds import generator
from swiftune.types import IGNORE, MicroBatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


BEGINNING, ENDS = [3, 4, 5], ([6, 7], [8, 9, 10])
"""Tokens of two rows that begin alike: what a model is tried out with."""


class Sums(NamedTuple):
    """Sums over the supervised tokens of a micro-batch, 0-dimensional tensors."""

    loss: torch.Tensor
    """float32, with a gradient."""
    correct: torch.Tensor
    """int64: how many labels are the model's most likely token."""


class SupervisedObjective(torch.nn.Module):
    """Next-token cross-entropy on packed rows.

    Args:
        model: a causal language model, or PEFT's wrapper of one. Its attention is switched to the packed one, unless
            it is a flash attention, which knows packed rows itself.
        neftune_alpha: noise on the embeddings while training, uniform in ±alpha/√(LD) for a sequence of L tokens
            (NEFTune, arXiv:2310.05914, algorithm 1); 0 for none.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, neftune_alpha: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.neftune_alpha = neftune_alpha
        self.causal_lm: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._own_attention = str(self.causal_lm.config._attn_implementation)
        self.flash = self._own_attention.startswith("flash_attention")
        if self.flash:  # it computes in 16 bits only, and the weights may be in float32 here
            self.causal_lm.set_attn_implementation("eager")
        self.body, self.head = head.split(self.causal_lm)
        attention.register()
        self.causal_lm.set_attn_implementation(attention.PACKED)
        alone = self._check_packing()
        self.shares = not self.flash and not neftune_alpha and self._can_share(alone)
        """Whether rows that begin alike may share that beginning: the noise of NEFTune is drawn for each row."""
        if self.flash:
            self.causal_lm.set_attn_implementation(self._own_attention)
        if self.causal_lm.device.type == "cpu":
            speed_up_norms(self.causal_lm)
            spare_gates(self.causal_lm)

    def _check_packing(self) -> list[torch.Tensor]:
        """The hidden states of two rows, each computed alone.

        Raises:
            ModelError: they are others where the rows are packed together, as some models carry a state.
        """
        first, second = ([*BEGINNING, *end] for end in ENDS)
        try:
            with self._trying():
                alone = [self._hidden(row, [0, len(row)]) for row in (first, second)]
                together_TD = self._hidden([*first, *second], [0, len(first), len(first) + len(second)])
        except (ValueError, TypeError, NotImplementedError, RuntimeError, ImportError) as error:
            raise self._unpackable(str(error)) from error
        if not _alike(torch.cat(alone), together_TD):
            raise self._unpackable("a row sees what stands before it")
        return alone

    def _can_share(self, alone: list[torch.Tensor]) -> bool:
        """Whether a row is the same whether its beginning stands before it or before all rows of the micro-batch."""
        shared = len(BEGINNING)
        tokens = [*BEGINNING, *ENDS[0], *ENDS[1]]
        try:
            with self._trying():
                together_TD = self._hidden(tokens, [0, shared, shared + len(ENDS[0]), len(tokens)], shared)
        except NotImplementedError:
            return False
        return _alike(torch.cat([alone[0], alone[1][shared:]]), together_TD)

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """A context in which the model computes as in evaluation, in the dtype of its weights."""
        was_training, dtype = self.causal_lm.training, self.causal_lm.dtype
        half = dtype in (torch.float16, torch.bfloat16)
        self.causal_lm.eval()
        try:
            with (
                torch.no_grad(),
                torch.autocast(self.causal_lm.device.type, dtype if half else torch.bfloat16, enabled=half),
            ):
                yield
        finally:
            self.causal_lm.train(was_training)

    def _hidden(self, ids: list[int], bounds: list[int], shared: int = 0) -> torch.Tensor:
        positions = [i + (shared if a else 0) for a, b in pairwise(bounds) for i in range(b - a)]
        device = self.causal_lm.device
        hidden_1TD = self.body(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            cu_seqlens=bounds,
            **({"shared": shared} if shared else {}),
        ).last_hidden_state
        return hidden_1TD[0]  # type: ignore[no-any-return]

    def _unpackable(self, why: str) -> ModelError:
        return ModelError(
            f"{type(self.causal_lm).__name__} cannot be trained on packed rows: {why.rstrip('.')}.",
            "Models of the Llama, Qwen2, Qwen3, Mistral, Phi, Gemma and Granite families can.",
        )

    @contextmanager
    def generating(self) -> Iterator[None]:
        """A context in which the model can write text: packed attention knows neither padding nor a cache."""
        training = self.causal_lm.config._attn_implementation
        self.causal_lm.set_attn_implementation(self._own_attention)
        try:
            yield
        finally:
            self.causal_lm.set_attn_implementation(training)

    def forward(self, batch: MicroBatch) -> Sums:
        """The sums of one micro-batch."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_1T}
        if self.training and self.neftune_alpha:
            embedded_1TD = self.causal_lm.get_input_embeddings()(batch.input_ids_1T)
            inputs = {"inputs_embeds": embedded_1TD + self._noise(batch, embedded_1TD)}
        hidden_TD = self.body(
            **inputs,
            position_ids=batch.position_ids_1T,
            use_cache=False,
            **self._bounds(batch),
        ).last_hidden_state[0]
        supervised_T = batch.labels_1T[0] != IGNORE
        return Sums(
            *linear_cross_entropy(
                hidden_TD[supervised_T],
                batch.labels_1T[0][supervised_T],
                self.head,
                self.head.trainable(),
                self.causal_lm.config.get_text_config().vocab_size,
            )
        )

    def _bounds(self, batch: MicroBatch) -> dict[str, Any]:
        if not self.flash:
            return {"cu_seqlens": batch.cu_seqlens} | ({"shared": batch.shared} if batch.shared else {})
        bounds = torch.tensor(batch.cu_seqlens, dtype=torch.int32, device=batch.input_ids_1T.device)
        longest = max(b - a for a, b in pairwise(batch.cu_seqlens))
        return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}

    def _noise(self, batch: MicroBatch, like_1TD: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor(batch.cu_seqlens, device=like_1TD.device).diff()
        size_T = (lengths * like_1TD.shape[-1]).to(torch.float32).rsqrt().repeat_interleave(lengths)
        return torch.empty_like(like_1TD).uniform_(-1, 1, generator=generator()) * (
            self.neftune_alpha * size_T[None, :, None]
        ).to(like_1TD)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=5e-2, atol=5e-2)
