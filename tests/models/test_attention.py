"""Packed attention against Transformers' own, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from swiftune.models import attention
from swiftune.train.objective import SupervisedObjective
from swiftune.train.pack import pack
from tests.train.rows import plain_loss, random_rows

SMALL = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def build(family: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    config: Any = {
        "mistral with a sliding window": lambda: t.MistralConfig(**SMALL, sliding_window=7),
        "gemma2 with soft caps and a window": lambda: t.Gemma2Config(
            **SMALL, head_dim=8, sliding_window=7, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
        ),
        "granite with scaled logits": lambda: t.GraniteConfig(**SMALL, logits_scaling=4.0, attention_multiplier=0.3),
        "cohere with scaled logits": lambda: t.CohereConfig(**SMALL, logit_scale=0.25),
        "qwen3": lambda: t.Qwen3Config(**SMALL, head_dim=16),
        "phi3": lambda: t.Phi3Config(**SMALL, pad_token_id=0),
    }[family]()
    return t.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()


@pytest.mark.parametrize(
    "family",
    [
        "mistral with a sliding window",
        "gemma2 with soft caps and a window",
        "granite with scaled logits",
        "cohere with scaled logits",
        "qwen3",
        "phi3",
    ],
)
def test_loss_and_gradient_equal_eager_attention_row_by_row(family: str) -> None:
    rows = random_rows(1, 4)
    plain, ours = build(family), build(family)
    expected = sum(plain_loss(plain, row)[0] for row in rows)
    expected.backward()
    loss = SupervisedObjective(ours)(pack(rows, torch.device("cpu"))).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for (name, p), (_, q) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("window", [None, 5])
def test_on_a_gpu_pytorchs_varlen_attention_is_given_what_it_asks_for(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Without a GPU, on tensors that have shapes only: the call is one that PyTorch takes, forward and backward."""
    monkeypatch.setattr(attention, "_has_varlen", lambda *_: True)
    given: list[dict[str, Any]] = []
    kernel = varlen.varlen_attn
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **kw: (given.append(kw), kernel(*args, **kw))[1])
    q, k, v = (
        torch.empty(1, heads, 12, 16, dtype=torch.bfloat16, device="meta", requires_grad=True) for heads in (4, 2, 2)
    )
    out, _ = attention.packed_attention(
        torch.nn.Module(), q, k, v, None, cu_seqlens=[0, 7, 12], scaling=0.3, sliding_window=window
    )
    assert out.shape == (1, 12, 4, 16)
    out.sum().backward()
    assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]  # type: ignore[union-attr]
    # A query sees itself and window - 1 tokens before it, and none after it.
    assert given == [{"scale": 0.3, "window_size": (-1 if window is None else window - 1, 0), "enable_gqa": True}]
