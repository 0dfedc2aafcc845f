"""Writing keys and values to pages, one token at a time."""

from __future__ import annotations

import numpy as np
from ml_dtypes import finfo
from numpy.typing import NDArray


def kv_write(
    k_pages: NDArray[np.floating],
    v_pages: NDArray[np.floating],
    k: NDArray[np.floating],
    v: NDArray[np.floating],
    page: NDArray[np.int32],
    offset: NDArray[np.int32],
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """See `api.kv_write`; the arguments are left alone."""
    k_pages, v_pages = k_pages.copy(), v_pages.copy()
    if k_pages.itemsize == 1:
        largest = float(finfo(k_pages.dtype).max)
        k, v = np.clip(k, -largest, largest), np.clip(v, -largest, largest)
    num_pages, page_size = k_pages.shape[:2]
    for token in range(len(page)):
        if 0 <= page[token] < num_pages and 0 <= offset[token] < page_size:
            k_pages[page[token], offset[token]] = k[token]
            v_pages[page[token], offset[token]] = v[token]
    return k_pages, v_pages
