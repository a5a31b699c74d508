"""Figures in words."""

from __future__ import annotations


def size_text(count: int) -> str:
    """Bytes as people read them.

    >>> size_text(3 * 2**29)
    '1.5 GiB'
    """
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
