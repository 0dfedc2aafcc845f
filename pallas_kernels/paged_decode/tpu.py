"""Decode attention for Pallas-Mosaic TPU: one program per row.

All query heads meet all keys of a block in one product, and what is not of their kv head is hidden.
That costs nothing: the matrix unit takes as long for the few queries of a kv head as for all.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.online_softmax import HIDDEN
from pallas_kernels.page_blocks import pages_per_block
from pallas_kernels.paged_tpu import (
    Pages,
    Partial,
    Walk,
    as_rows,
    check_supported,
    partial_buffers,
)

BLOCK_LEN = 256
"""Keys per iteration."""


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
    interpret: pltpu.InterpretParams | None = None,
) -> jax.Array:
    """See `api.paged_decode`. 128 must divide head_dim where this is not interpreted."""
    if interpret is None:
        check_supported(k_pages)
    rows, q_heads, head_dim = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    walk = Walk(page_size, kv_heads, pages_per_block(BLOCK_LEN, page_size), scale, soft_cap)
    max_pages = page_table.shape[1]
    keys, values = as_rows(k_pages), as_rows(v_pages)
    # Which token of its block a key is, and which kv head's; kernels cannot divide vectors.
    key = jnp.arange(walk.block_len * kv_heads, dtype=jnp.int32)
    kv_head_of_query = jnp.arange(q_heads, dtype=jnp.int32) // (q_heads // kv_heads)
    same_head = (kv_head_of_query[:, None] == key % kv_heads).astype(jnp.int32)

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda row, kv_len: (0, 0))

    tables = (key[None] // kv_heads, key[:, None] // kv_heads, same_head)
    heads = pl.BlockSpec((None, q_heads, head_dim), lambda row, kv_len: (row, 0, 0))
    return pl.pallas_call(
        functools.partial(_attend, walk=walk, window=window),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows,),
            in_specs=[
                pl.BlockSpec(
                    (None, 1, max_pages),
                    lambda row, kv_len: (row, 0, 0),
                    memory_space=pltpu.SMEM,
                ),
                heads,
                *map(whole, tables),
                pl.BlockSpec(memory_space=pltpu.HBM),
                pl.BlockSpec(memory_space=pltpu.HBM),
            ],
            out_specs=heads,
            scratch_shapes=[
                *walk.buffers(keys),
                *partial_buffers(q_heads, head_dim=head_dim),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret=interpret or False,
        name="paged_decode",
    )(kv_len, page_table[:, None], q, *tables, keys, values)


def _attend(
    kv_len_ref: Any,
    page_ref: Any,
    q_ref: Any,
    token_ref: Any,
    token_column_ref: Any,
    same_head_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    k_buffer: Any,
    v_buffer: Any,
    arrivals: Any,
    peak: Any,
    total: Any,
    weighted: Any,
    *,
    walk: Walk,
    window: int | None,
) -> None:
    """One row: page_ref [1, max_pages], q_ref and out_ref [q_heads, head_dim]; a block's keys are
    token_ref [1, keys], token_column_ref [keys, 1] and same_head_ref [q_heads, keys]."""
    kv_len = kv_len_ref[pl.program_id(0)]
    first = jnp.int32(0) if window is None else jnp.maximum(kv_len - window, 0)
    last_page = lax.div(jnp.maximum(kv_len - 1, 0), jnp.int32(walk.page_size))
    pages = Pages(walk, page_ref, last_page, (k_ref, v_ref), (k_buffer, v_buffer), arrivals)
    seen = Partial(peak, total, weighted)
    seen.clear()
    q = q_ref[...]

    def see(block: jax.Array, keys: jax.Array, values: jax.Array) -> None:
        def is_visible(token: jax.Array) -> jax.Array:
            token += block * walk.block_len
            return (token >= first) & (token < kv_len)

        scores = walk.scores(q, keys.astype(q.dtype))
        visible = is_visible(token_ref[...]) & (same_head_ref[...] != 0)
        scores = jnp.where(visible, scores, HIDDEN)
        # What lies behind a row's last token may be NaN.
        values = jnp.where(is_visible(token_column_ref[...]), values.astype(jnp.float32), 0.0)
        seen.see(scores, values.astype(q.dtype))

    pages.each(walk.block_of(first), walk.block_of(kv_len + walk.block_len - 1), see)
    out_ref[...] = seen.result().astype(out_ref.dtype)
