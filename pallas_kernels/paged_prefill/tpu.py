"""Prefill attention for Pallas-Mosaic TPU: one program per tile of queries.

A tile is some tokens of one row. The kernel takes a tile's queries from where they are, its keys
through the page table, and puts the results where the queries were. Queries dealt out to tiles
beforehand would take many times their memory: there must be tiles for the worst case, in which rows
fill little of theirs. Rows of one token are left to decode attention.
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
    num_tokens, q_heads, _ = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    group = q_heads // kv_heads
    walk = Walk(page_size, kv_heads, pages_per_block(BLOCK_LEN, page_size), scale, soft_cap)
    tile_len = max(MIN_TILE_LEN, DOT_ROWS // group // MIN_TILE_LEN * MIN_TILE_LEN)
    tiles = _deal(q_start, kv_len, num_tokens, tile_len)

    out = _attend_tiles(q, tiles, tile_len, (k_pages, v_pages), page_table, walk, window, interpret)

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
    """The queries of rows of two tokens and more, in tiles of one row; int32 [tiles] each. Tiles
    that are not used come last."""

    row: jax.Array
    count: jax.Array
    """Queries; 0 for a tile that is not used."""
    token: jax.Array
    """Index of the first query; where there is none, of what follows all of them."""
    position: jax.Array
    """Of the first query."""


def _deal(q_start: jax.Array, kv_len: jax.Array, num_tokens: int, tile_len: int) -> Tiles:
    rows = kv_len.shape[0]
    q_len = q_start[1:] - q_start[:-1]
    num_tiles = jnp.where(q_len > 1, (q_len + tile_len - 1) // tile_len, 0)
    ends = jnp.cumsum(num_tiles)
    most = num_tokens // tile_len + min(rows, num_tokens // 2) + 1
    tile = jnp.arange(most, dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(tile[:, None] >= ends, axis=1), rows - 1).astype(jnp.int32)
    token = q_start[row] + (tile - ends[row] + num_tiles[row]) * tile_len
    is_used = tile < ends[-1]
    return Tiles(
        row=row,
        count=jnp.where(is_used, jnp.minimum(q_start[row + 1] - token, tile_len), 0),
        token=jnp.where(is_used, token, num_tokens),
        position=kv_len[row] - q_start[row + 1] + token,
    )


def _attend_tiles(
    q: jax.Array,
    tiles: Tiles,
    tile_len: int,
    pages: tuple[jax.Array, jax.Array],
    page_table: jax.Array,
    walk: Walk,
    window: int | None,
    interpret: pltpu.InterpretParams | None,
) -> jax.Array:
    """Attention of the queries in tiles, shaped like q; anything for the others."""
    num_tokens, q_heads, head_dim = q.shape
    queries = tile_len * (q_heads // walk.kv_heads)
    keys, values = map(as_rows, pages)
    # Kernels cannot divide vectors, and read columns better than they make them.
    offset = (jnp.arange(queries, dtype=jnp.int32) % tile_len)[:, None]
    token = jnp.arange(walk.block_len, dtype=jnp.int32)

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda tile, *_: (0, 0))

    tables = (offset, token[None], token[:, None])
    # A row's last tile reaches beyond it, and so may the last of all beyond the queries.
    padded = jnp.pad(q, ((0, tile_len), (0, 0), (0, 0)))
    tile_shape = (tile_len, q_heads, head_dim)
    out = pl.pallas_call(
        functools.partial(_attend, walk=walk, window=window),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tiles),
            grid=tiles.row.shape,
            in_specs=[
                pl.BlockSpec(
                    (None, 1, page_table.shape[1]),
                    lambda tile, row, *_: (row[tile], 0, 0),
                    memory_space=pltpu.SMEM,
                ),
                pl.BlockSpec(
                    tuple(map(pl.Element, tile_shape)),
                    lambda tile, row, count, token, position: (token[tile], 0, 0),
                ),
                *map(whole, tables),
                pl.BlockSpec(memory_space=pltpu.HBM),
                pl.BlockSpec(memory_space=pltpu.HBM),
            ],
            out_specs=pl.BlockSpec(memory_space=pltpu.HBM),
            scratch_shapes=[
                pltpu.VMEM(tile_shape, jnp.float32),
                pltpu.VMEM((walk.kv_heads, queries, head_dim), q.dtype),
                pltpu.VMEM(tile_shape, q.dtype),
                pltpu.SemaphoreType.DMA,
                *walk.buffers(keys),
                *partial_buffers(walk.kv_heads, queries, head_dim=head_dim),
                pltpu.VMEM((2, walk.block_len * walk.kv_heads, head_dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(padded.shape, q.dtype),
        interpret=interpret or False,
        name="paged_prefill",
    )(*tiles, page_table[:, None], padded, *tables, keys, values)
    return out[:num_tokens]


def _attend(
    row_ref: Any,
    count_ref: Any,
    first_ref: Any,
    position_ref: Any,
    page_ref: Any,
    q_ref: Any,
    offset_ref: Any,
    token_ref: Any,
    token_column_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    by_token: Any,
    by_head: Any,
    narrow: Any,
    written: Any,
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
    """One tile: page_ref [1, max_pages], q_ref [tile_len, q_heads, head_dim], out_ref all of the
    result, [tokens and more, q_heads, head_dim]. A kv head's queries are those of its first query
    head, then those of the next. offset_ref [queries, 1] counts their tokens from the tile's first,
    token_ref [1, block_len] and token_column_ref [block_len, 1] from a block's; block_ref holds a
    block's keys and values in float32."""
    tile = pl.program_id(0)
    tile_len, q_heads, _ = q_ref.shape
    group = q_heads // walk.kv_heads
    start, last = position_ref[tile], position_ref[tile] + count_ref[tile] - 1
    end = last + 1
    first = jnp.int32(0) if window is None else jnp.maximum(start + 1 - window, 0)
    last_page = lax.div(jnp.maximum(last, 0), jnp.int32(walk.page_size))
    pages = Pages(walk, page_ref, last_page, (k_ref, v_ref), (k_buffer, v_buffer), arrivals)
    seen = Partial(peak, total, weighted)

    def place(head: int) -> tuple[int, Any]:
        """Of a query head's queries: which kv head's they are, and where among those."""
        return head // group, pl.ds(head % group * tile_len, tile_len)

    def see(block: jax.Array, keys: jax.Array, values: jax.Array) -> None:
        position = start + offset_ref[...]
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
            q = by_head[head]
            scores = walk.scores(q, block_ref[0, mine, :].astype(q.dtype))
            scores = jnp.where(visible, scores, HIDDEN)
            head_values = jnp.where(exists, block_ref[1, mine, :], 0.0).astype(q.dtype)
            Partial(*(each.at[head] for each in seen)).see(scores, head_values)

    @pl.when(count_ref[tile] > 0)
    def _() -> None:
        by_token[...] = q_ref[...].astype(jnp.float32)
        for head in range(q_heads):
            by_head[*place(head)] = by_token[:, head].astype(by_head.dtype)
        seen.clear()
        pages.each(walk.block_of(first), walk.block_of(end + walk.block_len - 1), see)
        for kv_head in range(walk.kv_heads):
            result = Partial(*(each.at[kv_head] for each in seen)).result()
            for head in range(group):
                mine = result[head * tile_len : (head + 1) * tile_len]
                by_token[:, kv_head * group + head] = mine
        narrow[...] = by_token[...].astype(narrow.dtype)
        # What this writes beyond its row is written again, by later tiles or by decode attention:
        # tiles run one after the other, and each waits for its own.
        whole = out_ref.at[pl.ds(first_ref[tile], tile_len)]
        copy = pltpu.make_async_copy(narrow, whole, written)
        copy.start()
        copy.wait()
