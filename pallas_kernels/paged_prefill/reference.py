"""Prefill attention, one query and head at a time, in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pallas_kernels.paged_decode.reference import attention


def paged_prefill(
    q: NDArray[np.floating],
    k_pages: NDArray[np.floating],
    v_pages: NDArray[np.floating],
    page_table: NDArray[np.int32],
    q_start: NDArray[np.int32],
    kv_len: NDArray[np.int32],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
) -> NDArray[np.float32]:
    """See `api.paged_prefill`; the result is float32 whatever q's dtype."""
    page_size, kv_heads = k_pages.shape[1:3]
    group = q.shape[1] // kv_heads
    out = np.zeros(q.shape, np.float32)
    for row, length in enumerate(kv_len):
        token = np.arange(length)
        place = page_table[row, token // page_size], token % page_size
        keys = k_pages[place].astype(np.float32)
        values = v_pages[place].astype(np.float32)
        for index in range(q_start[row], q_start[row + 1]):
            end = length - (q_start[row + 1] - index) + 1
            seen = slice(0 if window is None else max(0, end - window), end)
            for head in range(q.shape[1]):
                out[index, head] = attention(
                    q[index, head].astype(np.float32),
                    keys[seen, head // group],
                    values[seen, head // group],
                    scale,
                    soft_cap,
                )
    return out
