"""Prefill attention for Pallas-Mosaic TPU: one program per tile of queries.

A tile is some tokens of one row. XLA deals the queries out to tiles, grouped by kv head, and takes
the results back; the kernel finds a tile's keys through the page table. Rows of one token are left
to decode attention.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.online_softmax import HIDDEN
from pallas_kernels.page_blocks import pages_per_block
from pallas_kernels.paged_decode import tpu as decode
from pallas_kernels.paged_tpu import (
    Pages,
    Partial,
    Walk,
    as_rows,
    check_supported,
    partial_buffers,
)

BLOCK_LEN = 128
"""Keys per iteration."""
DOT_ROWS = 128
"""Rows of a product: query tokens times the query heads of a kv head."""
MIN_TILE_LEN = 16


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
    interpret: pltpu.InterpretParams | None = None,
) -> jax.Array:
    """See `api.paged_prefill`. 128 must divide head_dim where this is not interpreted."""
    if interpret is None:
        check_supported(k_pages)
    num_tokens, q_heads, head_dim = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    group = q_heads // kv_heads
    walk = Walk(page_size, kv_heads, pages_per_block(BLOCK_LEN, page_size), scale, soft_cap)
    tile_len = max(MIN_TILE_LEN, DOT_ROWS // group // MIN_TILE_LEN * MIN_TILE_LEN)
    tiles = _deal(q_start, kv_len, num_tokens, tile_len)

    out = _attend_tiles(
        _by_tile(q, tiles, kv_heads),
        tiles,
        (k_pages, v_pages),
        page_table,
        walk,
        window,
        interpret,
    )
    out = out.reshape(-1, kv_heads, tile_len, group, head_dim)
    out = out[tiles.of_token, :, tiles.offset_of_token].reshape(q.shape)

    is_single = q_start[1:] - q_start[:-1] == 1
    single = jnp.where(is_single, q_start[:-1], num_tokens)
    alone = decode.paged_decode(
        q.at[single].get(mode="fill", fill_value=0),
        k_pages,
        v_pages,
        page_table,
        jnp.where(is_single, kv_len, 0),
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        interpret=interpret,
    )
    exists = jnp.arange(num_tokens) < q_start[-1]
    out = jnp.where(exists[:, None, None], out, 0)
    return out.at[single].set(alone, mode="drop")


class Tiles(NamedTuple):
    """The queries of rows of two tokens and more, in tiles of one row. int32."""

    row: jax.Array
    """[tiles]"""
    count: jax.Array
    """[tiles]: queries; 0 for a tile that is not used."""
    position: jax.Array
    """[tiles]: of the first query."""
    token: jax.Array
    """[tiles, tile_len]: the queries, the last of all in the place of those that there are not."""
    of_token: jax.Array
    """[tokens]: tile of a query; any, if it has none."""
    offset_of_token: jax.Array
    """[tokens]: its place there."""


def _deal(q_start: jax.Array, kv_len: jax.Array, num_tokens: int, tile_len: int) -> Tiles:
    rows = kv_len.shape[0]
    q_len = q_start[1:] - q_start[:-1]
    num_tiles = jnp.where(q_len > 1, (q_len + tile_len - 1) // tile_len, 0)
    ends = jnp.cumsum(num_tiles)
    most = num_tokens // tile_len + min(rows, num_tokens // 2) + 1
    tile = jnp.arange(most, dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(tile[:, None] >= ends, axis=1), rows - 1).astype(jnp.int32)
    first = q_start[row] + (tile - ends[row] + num_tiles[row]) * tile_len
    count = jnp.where(tile < ends[-1], jnp.minimum(q_start[row + 1] - first, tile_len), 0)
    token = first[:, None] + jnp.arange(tile_len, dtype=jnp.int32)

    query = jnp.arange(num_tokens, dtype=jnp.int32)
    row_of = jnp.minimum(jnp.sum(query[:, None] >= q_start[1:], axis=1), rows - 1)
    place = query - q_start[row_of]
    return Tiles(
        row=row,
        count=count.astype(jnp.int32),
        position=kv_len[row] - q_start[row + 1] + first,
        token=jnp.clip(token, 0, num_tokens - 1),
        of_token=jnp.clip(ends[row_of] - num_tiles[row_of] + place // tile_len, 0, most - 1),
        offset_of_token=place % tile_len,
    )


def _by_tile(q: jax.Array, tiles: Tiles, kv_heads: int) -> jax.Array:
    """[tokens, q_heads, head_dim] -> [tiles, kv_heads, tile_len * group, head_dim]."""
    num_tiles, tile_len = tiles.token.shape
    head_dim = q.shape[-1]
    dealt = q[tiles.token].reshape(num_tiles, tile_len, kv_heads, -1, head_dim)
    return dealt.transpose(0, 2, 1, 3, 4).reshape(num_tiles, kv_heads, -1, head_dim)


def _attend_tiles(
    q: jax.Array,
    tiles: Tiles,
    pages: tuple[jax.Array, jax.Array],
    page_table: jax.Array,
    walk: Walk,
    window: int | None,
    interpret: pltpu.InterpretParams | None,
) -> jax.Array:
    """Attention of every tile, shaped like q [tiles, kv_heads, queries, head_dim]."""
    num_tiles, kv_heads, queries, head_dim = q.shape
    group = queries // tiles.token.shape[1]
    keys, values = map(as_rows, pages)
    # Kernels cannot divide vectors, and read columns better than they make them.
    offset = (jnp.arange(queries, dtype=jnp.int32) // group)[:, None]
    token = jnp.arange(walk.block_len, dtype=jnp.int32)

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda tile, *_: (0, 0))

    tables = (offset, token[None], token[:, None])
    tile_queries = pl.BlockSpec(
        (None, kv_heads, queries, head_dim), lambda tile, *_: (tile, 0, 0, 0)
    )
    return pl.pallas_call(
        functools.partial(_attend, walk=walk, window=window),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(num_tiles,),
            in_specs=[
                pl.BlockSpec(
                    (None, 1, page_table.shape[1]),
                    lambda tile, row, *_: (row[tile], 0, 0),
                    memory_space=pltpu.SMEM,
                ),
                tile_queries,
                *map(whole, tables),
                pl.BlockSpec(memory_space=pltpu.HBM),
                pl.BlockSpec(memory_space=pltpu.HBM),
            ],
            out_specs=tile_queries,
            scratch_shapes=[
                *walk.buffers(keys),
                *partial_buffers(kv_heads, queries, head_dim=head_dim),
                pltpu.VMEM((2, walk.block_len * kv_heads, head_dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret=interpret or False,
        name="paged_prefill",
    )(tiles.row, tiles.count, tiles.position, page_table[:, None], q, *tables, keys, values)


def _attend(
    row_ref: Any,
    count_ref: Any,
    position_ref: Any,
    page_ref: Any,
    q_ref: Any,
    offset_ref: Any,
    token_ref: Any,
    token_column_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    k_buffer: Any,
    v_buffer: Any,
    arrivals: Any,
    peak: Any,
    total: Any,
    weighted: Any,
    block_ref: Any,
    *,
    walk: Walk,
    window: int | None,
) -> None:
    """One tile: page_ref [1, max_pages], q_ref and out_ref [kv_heads, queries, head_dim], of which
    offset_ref [queries, 1] counts from the tile's first token, token_ref [1, block_len] and
    token_column_ref [block_len, 1] from a block's; block_ref holds a block's keys and values in
    float32."""
    tile = pl.program_id(0)
    start, last = position_ref[tile], position_ref[tile] + count_ref[tile] - 1
    end = jnp.where(count_ref[tile] > 0, last + 1, 0)
    first = jnp.int32(0) if window is None else jnp.maximum(start + 1 - window, 0)
    last_page = lax.div(jnp.maximum(last, 0), jnp.int32(walk.page_size))
    pages = Pages(walk, page_ref, last_page, (k_ref, v_ref), (k_buffer, v_buffer), arrivals)
    seen = Partial(peak, total, weighted)
    seen.clear()
    position = start + offset_ref[...]

    def see(block: jax.Array, keys: jax.Array, values: jax.Array) -> None:
        token = block * walk.block_len + token_ref[...]
        visible = token <= position
        if window is not None:
            visible &= token > position - window
        # What lies behind a row's last token may be NaN.
        exists = block * walk.block_len + token_column_ref[...] < end
        # One kv head's entries lie apart: only what has 32 bits is read that way.
        block_ref[0] = keys.astype(jnp.float32)
        block_ref[1] = values.astype(jnp.float32)
        for head in range(walk.kv_heads):
            mine = pl.ds(head, walk.block_len, stride=walk.kv_heads)
            q = q_ref[head]
            scores = walk.scores(q, block_ref[0, mine, :].astype(q.dtype))
            scores = jnp.where(visible, scores, HIDDEN)
            head_values = jnp.where(exists, block_ref[1, mine, :], 0.0).astype(q.dtype)
            Partial(*(each.at[head] for each in seen)).see(scores, head_values)

    pages.each(walk.block_of(first), walk.block_of(end + walk.block_len - 1), see)
    for head in range(walk.kv_heads):
        result = Partial(*(each.at[head] for each in seen)).result()
        out_ref[head] = result.astype(out_ref.dtype)
