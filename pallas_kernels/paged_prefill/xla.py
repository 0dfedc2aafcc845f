"""Prefill attention in plain jnp, laid out for XLA on a CPU.

Rows of one token go through the decode loop, all together. The others are cut into tiles of
queries of one row; a loop takes the tiles in use, and an inner one the blocks of pages that the
tile sees. The products of a tile are large enough to pay for a transposed copy of its keys and
values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.online_softmax import Partial, nothing_seen, result, see_block
from pallas_kernels.page_blocks import owned_pages, pages_per_block, read_pages
from pallas_kernels.paged_decode import xla as decode

TILE_LEN = 64
"""Queries per tile."""
BLOCK_LEN = 128
"""Keys per iteration of the inner loop."""


def paged_prefill(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    q_start: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    soft_cap: float | None,
    window: int | None,
) -> jax.Array:
    """See `api.paged_prefill`."""
    tokens, q_heads, head_dim = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    group = q_heads // kv_heads
    tile_len = min(TILE_LEN, tokens)
    block = pages_per_block(BLOCK_LEN, page_size)
    block_len = block * page_size

    q_len = q_start[1:] - q_start[:-1]
    is_single = q_len == 1
    tiles = jnp.where(is_single, 0, (q_len + tile_len - 1) // tile_len)
    tiles_end = jnp.cumsum(tiles)
    table = owned_pages(page_table, kv_len, page_size, block)
    # A tile may reach past its row, and so past the end of the array.
    queries = jnp.pad(q.astype(jnp.float32) * scale, ((0, tile_len), (0, 0), (0, 0)))

    def take_tile(tile: jax.Array, out: jax.Array) -> jax.Array:
        row = jnp.sum(tile >= tiles_end)
        first = q_start[row] + (tile - tiles_end[row] + tiles[row]) * tile_len
        # Positions: of the tile's queries, and how many keys the last of them sees.
        position = kv_len[row] - q_start[row + 1] + first + lax.iota(jnp.int32, tile_len)
        end = jnp.minimum(position[-1] + 1, kv_len[row])
        unseen = jnp.zeros_like(position) if window is None else position + 1 - window
        page_ids = table[row]

        def take_block(index: jax.Array, seen: Partial) -> Partial:
            ids = lax.dynamic_slice_in_dim(page_ids, index * block, block)
            token = index * block_len + lax.iota(jnp.int32, block_len)
            visible = (token <= position[:, None]) & (token >= unseen[:, None])
            keys, values = (
                read_pages(pages, ids)
                .reshape(block_len, kv_heads, head_dim)
                .transpose(1, 0, 2)
                .astype(jnp.float32)
                for pages in (k_pages, v_pages)
            )
            values = jnp.where((token < end)[:, None], values, 0.0)
            visible = jnp.tile(visible, (group, 1))
            return see_block(seen, tile_queries, keys, values, visible, soft_cap)

        tile_queries = (
            lax.dynamic_slice_in_dim(queries, first, tile_len)
            .reshape(tile_len, kv_heads, group, head_dim)
            .transpose(1, 2, 0, 3)
            .reshape(kv_heads, group * tile_len, head_dim)
        )
        seen = lax.fori_loop(
            jnp.maximum(unseen[0], 0) // block_len,
            (end + block_len - 1) // block_len,
            take_block,
            nothing_seen(tile_queries),
        )
        new = (
            result(seen)
            .reshape(kv_heads, group, tile_len, head_dim)
            .transpose(2, 0, 1, 3)
            .reshape(tile_len, q_heads, head_dim)
        )
        old = lax.dynamic_slice_in_dim(out, first, tile_len)
        in_row = first + lax.iota(jnp.int32, tile_len) < q_start[row + 1]
        new = jnp.where(in_row[:, None, None], new, old)
        return lax.dynamic_update_slice_in_dim(out, new, first, 0)

    out = lax.fori_loop(0, tiles_end[-1], take_tile, jnp.zeros_like(queries))[:tokens]
    out = out.astype(q.dtype)
    singles = decode.paged_decode(
        q[jnp.minimum(q_start[:-1], tokens - 1)],
        k_pages,
        v_pages,
        page_table,
        jnp.where(is_single, kv_len, 0),
        scale=scale,
        soft_cap=soft_cap,
        window=window,
    )
    return out.at[jnp.where(is_single, q_start[:-1], tokens)].set(singles, mode="drop")
