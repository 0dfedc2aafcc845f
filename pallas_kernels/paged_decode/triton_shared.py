"""Attention of packs of rows over the prefix that each has in common, for Pallas-Triton.

One program serves the query heads of one kv head in all rows of a pack, so that a prefix is read
once per pack instead of once per row, and the products have as many rows as tensor cores like (the
idea of Hydragen: Juravsky et al., arXiv 2402.05099). What it leaves is merged with each row's
attention over its own tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.paged_decode.shared_prefixes import PACK_ROWS, SharedPrefixes
from pallas_kernels.paged_triton import (
    Stretch,
    Walk,
    as_tokens,
    log_weight_of,
    one_head,
    power_of_two_from,
    result,
)

TILE_LEN = 64
MAX_PROGRAMS = 512
"""Splits are added up to here: about four programs per multiprocessor of an H100."""
MAX_SPLITS = 16


def attend_shared(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    first_page: jax.Array,
    shared: SharedPrefixes,
    *,
    scale: float,
    soft_cap: float | None,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Normalised outputs float32 [rows, q_heads, splits, head_dim] and the log2 of their weights
    [rows, q_heads, splits], HIDDEN for nothing; garbage for rows of no pack. Arguments as in
    `api.paged_decode`, but that q is padded and first_page is [1]."""
    rows, q_heads, head_dim = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    group, packs = q_heads // kv_heads, len(shared.shared_len)
    splits = 1
    while splits < MAX_SPLITS and 2 * splits * kv_heads * rows <= MAX_PROGRAMS * PACK_ROWS:
        splits *= 2
    tile_len = max(16, TILE_LEN // max(1, head_dim // 128)) if q.dtype.itemsize <= 2 else 16
    return pl.pallas_call(
        functools.partial(
            _attend, walk=Walk(page_size, tile_len, scale, soft_cap), num_splits=splits
        ),
        grid=(packs, kv_heads, splits),
        in_specs=[
            pl.BlockSpec((None,), lambda pack, head, split: (0,)),
            pl.BlockSpec((packs + 1,), lambda pack, head, split: (0,)),
            pl.BlockSpec((None,), lambda pack, head, split: (pack,)),
            pl.BlockSpec(page_table.shape, lambda pack, head, split: (0, 0)),
            pl.BlockSpec((rows, group, head_dim), lambda pack, head, split: (0, head, 0)),
            one_head(k_pages, axis=1),
            one_head(v_pages, axis=1),
        ],
        out_specs=[
            pl.BlockSpec(
                (rows, group, None, head_dim), lambda pack, head, split: (0, head, split, 0)
            ),
            pl.BlockSpec((rows, group, None), lambda pack, head, split: (0, head, split)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((rows, q_heads, splits, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((rows, q_heads, splits), jnp.float32),
        ],
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="paged_decode_shared",
    )(first_page, *shared, page_table, q, as_tokens(k_pages), as_tokens(v_pages))


def _attend(
    first_page_ref: Any,
    pack_start_ref: Any,
    shared_len_ref: Any,
    page_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    log_weight_ref: Any,
    *,
    walk: Walk,
    num_splits: int,
) -> None:
    """One split of a pack's prefix and one kv head: pack_start_ref [packs + 1], page_ref [rows,
    max_pages], q_ref and out_ref [rows, group, head_dim], k_ref and v_ref [tokens, head_dim or
    narrower], log_weight_ref [rows, group]."""
    pack, split = pl.program_id(0), pl.program_id(2)
    start = pack_start_ref[pack]
    count = pack_start_ref[pack + 1] - start
    group = q_ref.shape[1]
    padded_group = power_of_two_from(group)

    @pl.when(count > 0)
    def _() -> None:
        shared_len, first_page = shared_len_ref[...], first_page_ref[...]
        end_tile = walk.tile_of(shared_len + walk.tile_len - 1)
        tiles_each = lax.div(end_tile + num_splits - 1, jnp.int32(num_splits))
        begin = split * tiles_each
        end = jnp.minimum(begin + tiles_each, end_tile)

        # Padding repeats the last row and the last head, so that it neither loads nor stores
        # anything of its own.
        index = jnp.arange(PACK_ROWS * padded_group, dtype=jnp.int32)
        row = start + jnp.minimum(lax.div(index, jnp.int32(padded_group)), count - 1)
        head = jnp.minimum(lax.rem(index, jnp.int32(padded_group)), group - 1)

        def cache_rows(tile: jax.Array) -> jax.Array:
            first, last = jnp.int32(0), shared_len - 1
            return walk.cache_rows(lambda at: page_ref[start, at] + first_page, tile, first, last)

        def is_visible(token: jax.Array) -> jax.Array:
            return (token < shared_len)[None, :]

        seen = walk.attend(
            q_ref[row, head, :], k_ref, v_ref, Stretch(begin, end, is_visible), cache_rows
        )
        out_ref[row, head, :] = result(seen)
        log_weight_ref[row, head] = log_weight_of(seen)
