"""Decode attention for Pallas-Triton: one program per row, kv head and split of the row.

The query heads of one kv head are the rows of a matrix product, padded to the 16 that tensor cores
ask for. With more than one split per row, or a prefix that was read for several rows together, each
part leaves its own normalised output and the logarithm of its weight, and another kernel takes the
weighted mean (Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.online_softmax import HIDDEN
from pallas_kernels.paged_decode.shared_prefixes import SharedPrefixes
from pallas_kernels.paged_decode.triton_shared import attend_shared
from pallas_kernels.paged_decode.tuning import Tuning, default_tuning
from pallas_kernels.paged_triton import (
    Stretch,
    Walk,
    as_tokens,
    as_vector,
    check_supported,
    log_weight_of,
    one_head,
    padded_heads,
    power_of_two_from,
    result,
)

MIN_DOT_ROWS = 16


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
    first_page: jax.Array | None = None,
    shared: SharedPrefixes | None = None,
    tuning: Tuning | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `api.paged_decode`."""
    check_supported(k_pages)
    own_dim = q.shape[2]
    q = padded_heads(q)
    rows, q_heads, head_dim = q.shape
    page_size, kv_heads = k_pages.shape[1:3]
    group = q_heads // kv_heads
    max_pages = page_table.shape[1]
    if tuning is None:
        tuning = default_tuning(
            rows=rows,
            kv_heads=kv_heads,
            head_dim=head_dim,
            itemsize=q.dtype.itemsize,
            max_len=max_pages * page_size,
        )
    splits = tuning.num_splits
    kernel = functools.partial(
        _attend,
        walk=Walk(page_size, tuning.tile_len, scale, soft_cap),
        window=window,
        num_splits=splits,
    )
    is_whole = splits == 1 and shared is None
    dtype = q.dtype if is_whole else jnp.float32
    own_from = jnp.zeros_like(kv_len) if shared is None else _own_from(shared, rows)
    first_page = as_vector(first_page)
    outputs, log_weights = pl.pallas_call(
        kernel,
        grid=(rows, kv_heads, splits),
        in_specs=[
            pl.BlockSpec((None,), lambda row, head, split: (0,)),
            pl.BlockSpec((None,), lambda row, head, split: (row,)),
            pl.BlockSpec((None,), lambda row, head, split: (row,)),
            pl.BlockSpec((None, max_pages), lambda row, head, split: (row, 0)),
            pl.BlockSpec((None, group, head_dim), lambda row, head, split: (row, head, 0)),
            one_head(k_pages, axis=1),
            one_head(v_pages, axis=1),
        ],
        out_specs=[
            pl.BlockSpec(
                (None, group, None, head_dim), lambda row, head, split: (row, head, split, 0)
            ),
            pl.BlockSpec((None, group, None), lambda row, head, split: (row, head, split)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((rows, q_heads, splits, head_dim), dtype),
            jax.ShapeDtypeStruct((rows, q_heads, splits), jnp.float32),
        ],
        compiler_params=plt.CompilerParams(
            num_warps=tuning.num_warps, num_stages=tuning.num_stages
        ),
        interpret=interpret,
        name="paged_decode",
    )(first_page, own_from, kv_len, page_table, q, as_tokens(k_pages), as_tokens(v_pages))
    if is_whole:
        return outputs.reshape(q.shape)[..., :own_dim]
    parts = [outputs, log_weights]
    if shared is not None:
        parts += attend_shared(
            q,
            k_pages,
            v_pages,
            page_table,
            first_page,
            shared,
            scale=scale,
            soft_cap=soft_cap,
            interpret=interpret,
        )
    merged = pl.pallas_call(
        _merge,
        grid=(rows, q_heads),
        in_specs=[
            pl.BlockSpec((None,), lambda row, head: (row,)),
            *(
                pl.BlockSpec(
                    (None, None, *part.shape[2:]),
                    lambda row, head, rest=part.ndim - 2: (row, head) + (0,) * rest,
                )
                for part in parts
            ),
        ],
        out_specs=pl.BlockSpec((None, None, head_dim), lambda row, head: (row, head, 0)),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=plt.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="paged_decode_merge",
    )(kv_len, *parts)
    return merged[..., :own_dim]


def _attend(
    first_page_ref: Any,
    own_from_ref: Any,
    kv_len_ref: Any,
    page_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    log_weight_ref: Any,
    *,
    walk: Walk,
    window: int | None,
    num_splits: int,
) -> None:
    """One split of a row and kv head: page_ref [max_pages], q_ref and out_ref [group, head_dim],
    k_ref and v_ref [tokens, head_dim or narrower], log_weight_ref [group]."""
    kv_len, first_page = kv_len_ref[...], first_page_ref[...]
    first = own_from_ref[...]
    if window is not None:
        first = jnp.maximum(first, kv_len - window)
    first_tile = walk.tile_of(first)
    end_tile = walk.tile_of(kv_len + walk.tile_len - 1)
    tiles_each = lax.div(end_tile - first_tile + num_splits - 1, jnp.int32(num_splits))
    begin = first_tile + pl.program_id(2) * tiles_each
    end = jnp.minimum(begin + tiles_each, end_tile)

    # Padding repeats the last head, so that it neither loads nor stores anything of its own.
    group = q_ref.shape[0]
    dot_rows = max(MIN_DOT_ROWS, power_of_two_from(group))
    head = jnp.minimum(jnp.arange(dot_rows, dtype=jnp.int32), group - 1)

    def cache_rows(tile: jax.Array) -> jax.Array:
        return walk.cache_rows(lambda at: page_ref[at] + first_page, tile, first, kv_len - 1)

    def is_visible(token: jax.Array) -> jax.Array:
        return ((token >= first) & (token < kv_len))[None, :]

    stretch = Stretch(begin, end, is_visible)
    seen = walk.attend(q_ref[head, :], k_ref, v_ref, stretch, cache_rows)
    out_ref[head, :] = result(seen).astype(out_ref.dtype)
    log_weight_ref[head] = log_weight_of(seen)


def _own_from(shared: SharedPrefixes, rows: int) -> jax.Array:
    """[rows]: the token from which on a row is alone."""
    row = jnp.arange(rows, dtype=jnp.int32)
    pack = (row[:, None] >= shared.pack_start[None, 1:]).sum(1)
    return shared.shared_len.at[pack].get(mode="fill", fill_value=0)


def _merge(kv_len_ref: Any, *refs: Any) -> None:
    """The mean of outputs [splits, head_dim] by the weights whose log2 are given [splits], of one
    or two lots of them; 0 for a row without tokens, whatever is there."""
    *part_refs, out_ref = refs
    lots = [(part[...], weight[...]) for part, weight in itertools.batched(part_refs, 2)]
    peak = functools.reduce(jnp.maximum, (log_weight.max() for _, log_weight in lots))
    total, mean = jnp.float32(0), jnp.zeros(out_ref.shape, jnp.float32)
    for parts, log_weight in lots:
        weight = jnp.where(log_weight > HIDDEN, jnp.exp2(log_weight - peak), 0.0)
        total += weight.sum()
        mean += (parts * weight[:, None]).sum(0)
    mean = jnp.where(kv_len_ref[...] > 0, mean / jnp.where(total == 0, 1.0, total), 0.0)
    out_ref[...] = mean.astype(out_ref.dtype)
