"""Paged caches as they are found in service: pages in any order, garbage wherever nobody owns."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(jnp.bfloat16),
    "float8_e4m3fn": np.dtype(jnp.float8_e4m3fn),
}


class PagedCache(NamedTuple):
    k_pages: NDArray[np.floating]
    v_pages: NDArray[np.floating]
    page_table: NDArray[np.int32]


def make_cache(
    rng: np.random.Generator,
    kv_len: tuple[int, ...],
    page_size: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
) -> PagedCache:
    """A cache that holds rows of these lengths, with room to spare.

    A third of the pages belongs to nobody. These, and the places behind a row's last token, hold
    NaN. Page-table entries beyond a row's pages are numbers that name no page.
    """
    used = [-(-length // page_size) for length in kv_len]
    num_pages = 2 + sum(used) * 3 // 2
    shape = (num_pages, page_size, kv_heads, head_dim)
    keys, values = rng.standard_normal((2, *shape), np.float32)
    page_table = rng.integers(-(2**31), 2**31, (len(kv_len), max(used) + 3)).astype(np.int32)
    owned = np.zeros(shape[:2], bool)
    pages = rng.permutation(num_pages).astype(np.int32)
    for row, (count, length) in enumerate(zip(used, kv_len, strict=True)):
        mine, pages = pages[:count], pages[count:]
        page_table[row, :count] = mine
        token = np.arange(length)
        owned[mine[token // page_size], token % page_size] = True
    keys[~owned] = values[~owned] = np.nan
    return PagedCache(keys.astype(DTYPES[dtype]), values.astype(DTYPES[dtype]), page_table)
