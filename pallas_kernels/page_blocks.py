"""Reading paged keys and values in blocks of whole pages, in plain jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def pages_per_block(block_len: int, page_size: int) -> int:
    """Pages in a block of about `block_len` tokens, at least one."""
    return max(1, block_len // page_size)


def owned_pages(page_table: jax.Array, kv_len: jax.Array, page_size: int, block: int) -> jax.Array:
    """The page table with every entry that no row owns set to page 0, widened to whole blocks.

    What a page table holds beyond a row's length is anyone's; after this all name pages that exist.
    """
    first_token = lax.broadcasted_iota(jnp.int32, page_table.shape, 1) * page_size
    table = jnp.where(first_token < kv_len[:, None], page_table, 0)
    return jnp.pad(table, ((0, 0), (0, -table.shape[1] % block)))


def read_pages(pages: jax.Array, page_ids: jax.Array) -> jax.Array:
    """Pages [..., page_size * kv_heads * head_dim] of these ids, whose range is not checked."""
    flat = pages.reshape(pages.shape[0], -1)
    return flat.at[page_ids].get(mode="promise_in_bounds", wrap_negative_indices=False)
