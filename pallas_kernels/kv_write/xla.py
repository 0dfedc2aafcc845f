"""Writing keys and values to pages by scatter."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def kv_write(
    k_pages: jax.Array,
    v_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    page: jax.Array,
    offset: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """See `api.kv_write`."""
    return page_write(k_pages, k, page, offset), page_write(v_pages, v, page, offset)


def page_write(pages: jax.Array, new: jax.Array, page: jax.Array, offset: jax.Array) -> jax.Array:
    """See `api.page_write`."""
    return pages.at[page, offset].set(
        _cast(new, pages.dtype),
        mode="drop",
        wrap_negative_indices=False,
        # Else a GPU writes with atomic operations, which queue up where places are the same.
        unique_indices=True,
    )


def _cast(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Values beyond the range of an 8-bit type become its largest: a plain cast makes NaN of
    them."""
    if dtype.itemsize == 1:
        largest = float(jnp.finfo(dtype).max)
        values = jnp.clip(values, -largest, largest)
    return values.astype(dtype)
