"""Attention over packed rows: each sequence attends to itself only, and the work grows by the sum of squares.

Registered with Transformers' attention interface, so it serves every model that uses that interface. Transformers
builds no mask for an implementation that it has no mask function for, so a T x T mask never exists.

Plain causal attention is done in blocks of our own on a CPU (``blocked_attention``), and by PyTorch's flash attention
for sequences of any lengths on a GPU; what those do not know takes PyTorch's kernels, one sequence at a time. So do
long sequences on a CPU with matrix units, for which PyTorch's flash kernel there is the faster one.

Shapes: B batch (always 1 here), H query heads, K key/value heads, T tokens of all sequences, D head size.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from swiftune.models.blocked_attention import blocked_attention
from swiftune.runtime.hardware import has_matrix_units

PACKED = "swiftune_packed"
LONG = 1024
"""Tokens from which PyTorch's kernel is a quarter faster than our blocks, on a CPU with matrix units."""


def packed_attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seqlens: list[int] | None = None,
    shared: int = 0,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a packed micro-batch.

    Args:
        cu_seqlens: where each sequence starts, and T at the end.
        shared: tokens of the first sequence, if they stand before every other one, too: plain attention on a CPU only.
        sliding_window: tokens that a query may look back, itself included.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2, arXiv:2408.00118, section 2).

    Returns:
        The output as Transformers expects it, ``(B, T, H, D)``, and no weights.
    """
    if s_aux is not None:
        raise NotImplementedError(f"{type(module).__name__} uses attention sinks, which packed training does not know")
    if shared and (query_BHTD.device.type != "cpu" or sliding_window is not None or softcap is not None or dropout):
        raise NotImplementedError("a shared beginning is for plain attention on a CPU")
    assert attention_mask is None
    bounds = cu_seqlens or [0, query_BHTD.shape[2]]
    lengths = [end - start for start, end in pairwise(bounds)]
    window = sliding_window if sliding_window is not None and sliding_window < max(lengths) else None
    device, dtype = query_BHTD.device, value_BKTD.dtype
    # With float32 weights under autocast the rotated queries and keys are in float32, the values are not.
    query_BHTD, key_BKTD = query_BHTD.to(dtype), key_BKTD.to(dtype)
    flash = min(lengths) >= LONG and not shared and has_matrix_units(device, dtype)
    if device.type == "cpu" and window is None and softcap is None and not dropout and not flash:
        scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
        return blocked_attention(query_BHTD[0], key_BKTD[0], value_BKTD[0], bounds, scale, shared)[None], None
    if softcap is None and not dropout and _has_varlen(device, dtype):
        q, k, v = (x[0].transpose(0, 1) for x in (query_BHTD, key_BKTD, value_BKTD))
        return _varlen(q, k, v, tuple(bounds), scaling, window)[None], None
    outputs = []
    # ``split``, not slices: its backward is one concatenation, that of a slice a tensor of zeros for every sequence.
    for q, k, v in zip(*(torch.split(x, lengths, dim=2) for x in (query_BHTD, key_BKTD, value_BKTD)), strict=True):
        if softcap is not None:
            outputs.append(_softcapped(q, k, v, scaling, softcap, window, dropout))
            continue
        mask = _window_mask(q.shape[2], window, q.device) if window is not None and window < q.shape[2] else None
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


@functools.cache
def _has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has its kernel for packed sequences here: in 16 bits, from NVIDIA's Ampere on."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or torch.version.hip:
        return False
    parts = torch.__version__.split(".")
    return (int(parts[0]), int(parts[1])) >= (2, 12) and torch.cuda.get_device_capability(device) >= (8, 0)


def _varlen(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    bounds: tuple[int, ...],
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """``(T, H, D)``. No GPU has run this yet: its tests check shapes on tensors without values."""
    from torch.nn.attention.varlen import varlen_attn

    starts = _starts(bounds, q_THD.device)
    longest = max(end - start for start, end in pairwise(bounds))
    back = -1 if window is None else window - 1
    out_THD = varlen_attn(
        q_THD, k_TKD, v_TKD, starts, starts, longest, longest, scale=scale, window_size=(back, 0), enable_gqa=True
    )
    assert isinstance(out_THD, torch.Tensor)  # a pair only where more is asked for
    return out_THD


@functools.lru_cache(maxsize=1)
def _starts(bounds: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """On the device, made once a micro-batch and not once a layer."""
    return torch.tensor(bounds, dtype=torch.int32, device=device)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """True where a query (row) may look at a key (column)."""
    offset = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    mask = offset >= 0
    return mask if window is None else mask & (offset < window)


def _softcapped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    softcap: float,
    window: int | None,
    dropout: float,
) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    scores = scores.float().masked_fill(~_window_mask(q.shape[2], window, q.device), float("-inf"))
    weights = torch.nn.functional.dropout(scores.softmax(dim=-1), dropout).to(v.dtype)
    return weights @ v


def register() -> None:
    """Makes ``attn_implementation="swiftune_packed"`` known to Transformers. May be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
