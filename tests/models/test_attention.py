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


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("lengths", [(1024, 1100), (1024, 70)])
def test_long_sequences_are_the_same_with_matrix_units_and_without(
    monkeypatch: pytest.MonkeyPatch, units: bool, lengths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(attention, "has_matrix_units", lambda *_: units)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, sum(lengths), 16, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2))
    out, _ = attention.packed_attention(
        torch.nn.Module(), q, k, v, None, cu_seqlens=[0, lengths[0], sum(lengths)], scaling=0.3
    )
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    parts = zip(*(x.split(lengths, dim=2) for x in wide), strict=True)
    expected = torch.cat([_plain(*part, 0.3) for part in parts], dim=2).transpose(1, 2)
    seed = torch.randn_like(out)
    out.backward(seed)
    expected.backward(seed.double())
    pairs: Any = zip((out, q.grad, k.grad, v.grad), (expected, *(x.grad for x in wide)), strict=True)
    for got, right in pairs:
        assert (got - right).norm() < 0.01 * right.norm()


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = scale * q @ k.transpose(-1, -2)
    return (scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)).softmax(-1) @ v


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
