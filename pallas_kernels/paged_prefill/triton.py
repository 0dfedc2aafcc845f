"""Prefill attention for Pallas-Triton: one program per tile of queries and kv head.

A tile is some tokens of one row; each of its tokens has the query heads of the kv head, so that one
product serves all of them. The loop over keys ends with the last that the tile sees (FlashAttention
2: Dao, arXiv 2307.08691). Rows of a single token, which decode, would leave most of a tile empty:
they go through the kernel of decode attention.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.paged_decode.triton import paged_decode
from pallas_kernels.paged_prefill.tuning import Tuning, default_tuning
from pallas_kernels.paged_triton import (
    Stretch,
    Walk,
    as_tokens,
    as_vector,
    check_supported,
    one_head,
    padded_heads,
    power_of_two_from,
    result,
)

ABOUT_KEYS = 256
"""To put tiles in order their numbers of keys are rounded up to multiples of this."""


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
    first_page: jax.Array | None = None,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `api.paged_prefill`."""
    own_dim = q.shape[2]
    q = padded_heads(q)
    many = _many_tokens(
        q,
        k_pages,
        v_pages,
        page_table,
        q_start,
        kv_len,
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        first_page=first_page,
        tuning=tuning,
        interpret=interpret,
    )
    first = q_start[:-1]
    is_single = q_start[1:] - first == 1
    single = paged_decode(
        q.at[first].get(mode="clip"),
        k_pages,
        v_pages,
        page_table,
        jnp.where(is_single, kv_len, 0),
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        first_page=first_page,
        interpret=interpret,
    )
    place = jnp.where(is_single, first, len(q))
    out = many.at[place].set(single, mode="drop", unique_indices=True)
    return out[..., :own_dim]


def _many_tokens(
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
    first_page: jax.Array | None,
    tuning: Tuning | None,
    interpret: bool,
) -> jax.Array:
    """Attention of the rows that have more than one token; garbage for those that have one."""
    check_supported(k_pages)
    num_tokens, q_heads, head_dim = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    group = q_heads // kv_heads
    padded_group = power_of_two_from(group)
    if tuning is None:
        tuning = default_tuning(
            head_dim=head_dim,
            itemsize=q.dtype.itemsize,
            num_rows=num_tokens * padded_group * kv_heads,
        )
    tokens_each = max(1, tuning.dot_rows // padded_group)
    tiles = tile_map(q_start, kv_len, num_tokens, tokens_each, window)
    kernel = functools.partial(
        _attend,
        walk=Walk(page_size, tuning.tile_len, scale, soft_cap),
        window=window,
        tokens_each=tokens_each,
    )
    heads = pl.BlockSpec((num_tokens, group, head_dim), lambda head, tile: (0, head, 0))
    return pl.pallas_call(
        kernel,
        grid=(kv_heads, tiles.shape[0]),
        in_specs=[
            pl.BlockSpec((None,), lambda head, tile: (0,)),
            pl.BlockSpec((None, 4), lambda head, tile: (tile, 0)),
            pl.BlockSpec(page_table.shape, lambda head, tile: (0, 0)),
            heads,
            one_head(k_pages, axis=0),
            one_head(v_pages, axis=0),
        ],
        out_specs=heads,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=plt.CompilerParams(
            num_warps=tuning.num_warps, num_stages=tuning.num_stages
        ),
        interpret=interpret,
        name="paged_prefill",
    )(as_vector(first_page), tiles, page_table, q, as_tokens(k_pages), as_tokens(v_pages))


def tile_map(
    q_start: jax.Array,
    kv_len: jax.Array,
    num_tokens: int,
    tokens_each: int,
    window: int | None = None,
) -> jax.Array:
    """The queries of rows with more than one in tiles of at most `tokens_each` of one row; int32
    [tiles, 4].

    A tile is its row, the index and the number of its queries, and the position of the first. What
    pads the queries counts as a row without keys. There are as many tiles as the worst case needs,
    those of no queries last. The others begin with those that have most keys to look at, so that
    the work ends evenly; among about as many, tiles of one row stay together, since they share what
    they read. A `window` hides the keys before it.
    """
    rows = kv_len.shape[0]
    starts = jnp.append(q_start, num_tokens).astype(jnp.int32)
    lengths = jnp.append(kv_len, 0)
    num_queries = starts[1:] - starts[:-1]
    is_single = (num_queries == 1) & (lax.iota(jnp.int32, rows + 1) < rows)
    num_tiles = jnp.where(is_single, 0, (num_queries + tokens_each - 1) // tokens_each)
    ends = jnp.cumsum(num_tiles)
    most = num_tokens // tokens_each + rows + 1
    tile = most - 1 - lax.iota(jnp.int32, most)
    row = jnp.sum(tile[:, None] >= ends, axis=1)
    is_used = row <= rows
    row = jnp.minimum(row, rows)
    first = starts[row] + (tile - ends[row] + num_tiles[row]) * tokens_each
    count = jnp.where(is_used, jnp.minimum(starts[row + 1] - first, tokens_each), 0)
    position = lengths[row] - starts[row + 1] + first
    tiles = jnp.stack([jnp.minimum(row, rows - 1), first, count, position], axis=1)
    num_keys = jnp.maximum(position + count, 0)
    if window is not None:
        num_keys = jnp.minimum(num_keys, window - 1 + count)
    about = jnp.where(count > 0, (num_keys + ABOUT_KEYS - 1) // ABOUT_KEYS, -1)
    return tiles[jnp.argsort(about, descending=True)]


def _attend(
    first_page_ref: Any,
    tile_ref: Any,
    page_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    *,
    walk: Walk,
    window: int | None,
    tokens_each: int,
) -> None:
    """One tile and kv head: tile_ref [4], page_ref [rows, max_pages], q_ref and out_ref [tokens,
    group, head_dim], k_ref and v_ref [tokens, head_dim or narrower]."""
    row, start, count, start_position = (tile_ref[index] for index in range(4))
    first_page = first_page_ref[...]
    group = q_ref.shape[1]
    padded_group = power_of_two_from(group)

    @pl.when(count > 0)
    def _() -> None:
        # Padding repeats the last token and the last head, so that it neither loads nor stores
        # anything of its own.
        index = jnp.arange(tokens_each * padded_group, dtype=jnp.int32)
        offset = jnp.minimum(lax.div(index, jnp.int32(padded_group)), count - 1)
        head = jnp.minimum(lax.rem(index, jnp.int32(padded_group)), group - 1)
        position = start_position + offset

        last = start_position + count - 1
        first = jnp.int32(0) if window is None else jnp.maximum(start_position + 1 - window, 0)
        # Padding has positions below 0, and so no tiles.
        begin, end = walk.tile_of(first), walk.tile_of(jnp.maximum(last, -1) + walk.tile_len)

        def cache_rows(tile: jax.Array) -> jax.Array:
            return walk.cache_rows(lambda at: page_ref[row, at] + first_page, tile, first, last)

        def is_visible(token: jax.Array) -> jax.Array:
            visible = token[None, :] <= position[:, None]
            if window is None:
                return visible
            return visible & (token[None, :] > position[:, None] - window)

        queries = q_ref[start + offset, head, :]
        stretch = Stretch(begin, end, is_visible)
        seen = walk.attend(queries, k_ref, v_ref, stretch, cache_rows)
        out_ref[start + offset, head, :] = result(seen).astype(out_ref.dtype)
