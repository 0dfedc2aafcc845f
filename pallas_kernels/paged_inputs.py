"""What the paged attention operations ask of their inputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def check_pages(k_pages: jax.Array, v_pages: jax.Array) -> None:
    """Raise ValueError unless both are [pages, page_size, kv_heads, head_dim], alike."""
    if k_pages.ndim != 4:
        raise ValueError(
            f"k_pages must be [pages, page_size, kv_heads, head_dim], not {k_pages.shape}"
        )
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError(
            f"v_pages {v_pages.dtype}{v_pages.shape} must be like k_pages "
            f"{k_pages.dtype}{k_pages.shape}"
        )


def check_queries(q: jax.Array, k_pages: jax.Array) -> None:
    """Raise ValueError unless q is [tokens, q_heads, head_dim] and its heads fit the pages."""
    if q.ndim != 3:
        raise ValueError(f"q must be [tokens, q_heads, head_dim], not {q.shape}")
    kv_heads, head_dim = k_pages.shape[2:]
    if q.shape[2] != head_dim:
        raise ValueError(f"q has head_dim {q.shape[2]}, the pages have {head_dim}")
    if q.shape[1] % kv_heads:
        raise ValueError(f"{q.shape[1]} query heads do not divide among {kv_heads} kv heads")


def check_rows(page_table: jax.Array, kv_len: jax.Array) -> None:
    """Raise ValueError unless page_table is int32 [rows, max_pages] and kv_len int32 [rows]."""
    if page_table.ndim != 2 or page_table.dtype != jnp.int32:
        raise ValueError(
            f"page_table must be int32 [rows, max_pages], not {page_table.dtype}{page_table.shape}"
        )
    check_int32("kv_len", kv_len, page_table.shape[0])


def placed_pages(
    page_table: jax.Array, first_page: jax.Array | None, backend: str
) -> tuple[jax.Array, dict[str, Any]]:
    """The page table and the options by which a backend finds a layer's pages: some add
    `first_page` as they look pages up, for the others the table is made anew."""
    if backend.startswith("triton"):
        return page_table, {"first_page": first_page}
    return (page_table if first_page is None else page_table + first_page), {}


def check_int32(name: str, array: jax.Array, size: int) -> None:
    """Raise ValueError unless the array is int32 [size]."""
    if array.shape != (size,) or array.dtype != jnp.int32:
        raise ValueError(f"{name} must be int32 ({size},), not {array.dtype}{array.shape}")


def check_options(soft_cap: float | None, window: int | None) -> None:
    """Raise ValueError for a soft cap or a window that is not positive."""
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be positive, not {soft_cap}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
