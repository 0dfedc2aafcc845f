"""Decode attention in plain jnp, laid out for XLA on a CPU.

A loop takes one block of pages of every row at a time. Its two matrix products run over all heads
at once: a query is spread over a vector of kv_heads * head_dim entries, zero outside its own kv
head, so that keys and values are used as they lie in their pages. That costs kv_heads times the
multiplications and saves a transposed copy of everything read, which on a CPU is dearer.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.online_softmax import Partial, nothing_seen, result, see_block
from pallas_kernels.page_blocks import owned_pages, pages_per_block, read_pages

BLOCK_LEN = 64
"""Tokens per row and iteration: larger blocks waste more behind a row's end, smaller ones cost
more operations."""
NARROWING = 8
"""Once all but one row in so many have ended, the loop goes on with that part alone."""


def paged_decode(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    soft_cap: float | None,
    window: int | None,
) -> jax.Array:
    """See `api.paged_decode`."""
    page_size, kv_heads = k_pages.shape[1:3]
    block = pages_per_block(BLOCK_LEN, page_size)
    block_len = block * page_size

    longest_first = jnp.argsort(kv_len, descending=True)
    lengths = kv_len[longest_first]
    table = owned_pages(page_table, kv_len, page_size, block)[longest_first]
    queries = _spread_heads(q[longest_first].astype(jnp.float32) * scale, kv_heads)
    unseen = jnp.zeros_like(lengths) if window is None else jnp.maximum(lengths - window, 0)

    def take_block(index: jax.Array, seen: Partial, num_rows: int) -> Partial:
        ids = lax.dynamic_slice_in_dim(table[:num_rows], index * block, block, axis=1)
        token = index * block_len + lax.iota(jnp.int32, block_len)
        visible = (token < lengths[:num_rows, None]) & (token >= unseen[:num_rows, None])
        keys, values = (
            read_pages(pages, ids).reshape(num_rows, block_len, -1).astype(jnp.float32)
            for pages in (k_pages, v_pages)
        )
        values = jnp.where(visible[:, :, None], values, 0.0)
        return see_block(seen, queries[:num_rows], keys, values, visible[:, None], soft_cap)

    seen = nothing_seen(queries)
    index = jnp.int32(0)
    ended: list[jax.Array] = []
    for num_rows in _loop_widths(q.shape[0]):
        num_left = num_rows // NARROWING
        # The shortest row here looks back furthest. The loop ends with the longest row that does
        # not go on to the next one.
        index = jnp.maximum(index, unseen[num_rows - 1] // block_len)
        end = (lengths[num_left] + block_len - 1) // block_len
        step = functools.partial(take_block, num_rows=num_rows)
        seen = lax.fori_loop(index, end, step, seen)
        ended.append(result(_slice_rows(seen, num_left, num_rows)))
        seen = _slice_rows(seen, 0, num_left)
        index = jnp.maximum(index, end)
    out = _own_heads(jnp.concatenate(ended[::-1]), kv_heads).astype(q.dtype)
    return jnp.zeros_like(out).at[longest_first].set(out, unique_indices=True)


def _loop_widths(rows: int) -> list[int]:
    """Numbers of rows that the loops serve one after the other, the longest rows last."""
    widths: list[int] = []
    while rows:
        widths.append(rows)
        rows //= NARROWING
    return widths


def _slice_rows(seen: Partial, start: int, stop: int) -> Partial:
    return Partial(*(array[start:stop] for array in seen))


def _spread_heads(q: jax.Array, kv_heads: int) -> jax.Array:
    """[rows, q_heads, head_dim] -> [rows, q_heads, kv_heads * head_dim].

    Zero but in the entries of the query head's own kv head.
    """
    rows, q_heads, head_dim = q.shape
    grouped = q.reshape(rows, kv_heads, q_heads // kv_heads, 1, head_dim)
    own = jnp.eye(kv_heads, dtype=bool)[:, None, :, None]
    return jnp.where(own, grouped, 0.0).reshape(rows, q_heads, kv_heads * head_dim)


def _own_heads(spread: jax.Array, kv_heads: int) -> jax.Array:
    """The inverse of `_spread_heads`: each query head's part from its own kv head."""
    rows, q_heads, width = spread.shape
    parts = spread.reshape(rows, kv_heads, q_heads // kv_heads, kv_heads, width // kv_heads)
    own = jnp.stack([parts[:, head, :, head] for head in range(kv_heads)], axis=1)
    return own.reshape(rows, q_heads, width // kv_heads)
