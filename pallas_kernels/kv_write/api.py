"""Writing keys and values to pages: the public functions."""

from __future__ import annotations

import functools

import jax

from pallas_kernels.backends import choose
from pallas_kernels.kv_write import xla
from pallas_kernels.paged_inputs import check_int32, check_pages

BACKENDS = {"xla": xla.kv_write}


# Traced once for all layers of a model.
@functools.partial(jax.jit, static_argnames=("backend",))
def kv_write(
    k_pages: jax.Array,
    v_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    page: jax.Array,
    offset: jax.Array,
    *,
    backend: str = "xla",
) -> tuple[jax.Array, jax.Array]:
    """Put token t's key and value at `[page[t], offset[t]]` and return the pages.

    k_pages, v_pages [pages, page_size, kv_heads, head_dim]; k, v [tokens, kv_heads, head_dim], cast
    to the pages' dtype, to whose range they are clipped if it has 8 bits; page, offset int32
    [tokens]. In place, without a copy, where the pages are donated. A token whose page or offset
    does not exist is dropped, as padding has to be: no two tokens may have the same existing place.

    Raises ValueError for shapes and dtypes that do not fit, and for an unknown backend.
    """
    check_pages(k_pages, v_pages)
    tokens = page.shape[0]
    expected = (tokens, *k_pages.shape[2:])
    for name, array in (("k", k), ("v", v)):
        if array.shape != expected:
            raise ValueError(f"{name} must be {expected}, not {array.shape}")
    check_int32("page", page, tokens)
    check_int32("offset", offset, tokens)
    return choose(backend, BACKENDS)(k_pages, v_pages, k, v, page, offset)


@jax.jit
def page_write(pages: jax.Array, new: jax.Array, page: jax.Array, offset: jax.Array) -> jax.Array:
    """`kv_write` for a cache whose keys and values are the same vectors, in one array."""
    check_pages(pages, pages)
    expected = (page.shape[0], *pages.shape[2:])
    if new.shape != expected:
        raise ValueError(f"new must be {expected}, not {new.shape}")
    check_int32("page", page, page.shape[0])
    check_int32("offset", offset, page.shape[0])
    return xla.page_write(pages, new, page, offset)
