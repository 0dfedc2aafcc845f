"""Decode attention, one row and head at a time, in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def paged_decode(
    q: NDArray[np.floating],
    k_pages: NDArray[np.floating],
    v_pages: NDArray[np.floating],
    page_table: NDArray[np.int32],
    kv_len: NDArray[np.int32],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
) -> NDArray[np.float32]:
    """See `api.paged_decode`; the result is float32 whatever q's dtype."""
    page_size, kv_heads = k_pages.shape[1:3]
    group = q.shape[1] // kv_heads
    out = np.zeros(q.shape, np.float32)
    for row, length in enumerate(kv_len):
        token = np.arange(0 if window is None else max(0, length - window), length)
        place = page_table[row, token // page_size], token % page_size
        keys = k_pages[place].astype(np.float32)
        values = v_pages[place].astype(np.float32)
        for head in range(q.shape[1] if length else 0):
            query = q[row, head].astype(np.float32)
            kv_head = head // group
            out[row, head] = attention(query, keys[:, kv_head], values[:, kv_head], scale, soft_cap)
    return out


def attention(
    query: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    scale: float,
    soft_cap: float | None,
) -> NDArray[np.float32]:
    """softmax(scale * keys · query) · values, of one query [head_dim] and keys [keys, head_dim]."""
    scores = np.float32(scale) * (keys @ query)
    if soft_cap is not None:
        scores = np.float32(soft_cap) * np.tanh(scores / np.float32(soft_cap))
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()
