"""One token times a quantised matrix, for Pallas-Triton: without tensor cores, which would fill
tiles of 16 tokens and need the matrix in an order of their own.

A program computes some outputs. Its threads lie along the inputs, each with a chunk or two of every
row and the part of the token that belongs to them, and add up what they have at the end. Other
programs keep a multiprocessor busy while one waits for its loads: to load a block ahead was slower.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.four_bits import MIDDLE, RAISED_BY, raised_halves
from pallas_kernels.triton_instructions import multiply_add, widened_float8

CHUNK = 8
"""Bytes of a row that a thread loads at once: as many as fit its load of the token."""
CHUNKS_PER_WARP = 64
"""Of a row at a time, two for each thread."""
CHUNKS_PER_GROUP = 2
"""Of four bits that a thread has of one group, whose scale it applies to their sum."""


class _Layout(NamedTuple):
    tile_outputs: int
    """Of a program. More share the token's loads further, but take registers for their sums: with
    16 of four bits the compiler gives a thread 113 or 252, as chance will have it."""
    num_warps: int


LAYOUTS = {8: _Layout(tile_outputs=2, num_warps=1), 4: _Layout(tile_outputs=4, num_warps=2)}
"""By bits."""


def one_token_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    dtype: Any,
    interpret: bool = False,
) -> jax.Array:
    """`api.quant_matmul` with x [1, in]."""
    outputs, num_bytes = values.shape
    tile, layout = (_eight_bits, LAYOUTS[8]) if scales.ndim == 1 else (_four_bits, LAYOUTS[4])
    tile_outputs, num_warps = layout
    chunks = _power_of_two(num_bytes // CHUNK, num_warps * CHUNKS_PER_WARP)
    matrix = [values, scales] if zeros is None else [values, scales, zeros]

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    return pl.pallas_call(
        functools.partial(tile, chunks=chunks, tile_outputs=tile_outputs, interpret=interpret),
        grid=(pl.cdiv(outputs, tile_outputs),),
        in_specs=[whole(array) for array in (x, *matrix)],
        out_specs=pl.BlockSpec((1, outputs), lambda _: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((1, outputs), dtype),
        compiler_params=plt.CompilerParams(num_warps=num_warps, num_stages=1),
        interpret=interpret,
        name="one_token_matmul",
    )(x, *matrix)


def _power_of_two(size: int, limit: int) -> int:
    """The largest that divides `size`, up to `limit`."""
    return min(size & -size, 1 << (limit.bit_length() - 1))


def _inside(chunks: int) -> jax.Array:
    """Places in a block, chunk by chunk."""
    chunk, place = (jnp.arange(size, dtype=jnp.int32) for size in (chunks, CHUNK))
    return chunk[:, None] * CHUNK + place[None, :]


def _stream(ref: Any) -> jax.Array:
    """What is read once, past the cache that keeps the token."""
    return plt.load(ref, eviction_policy="evict_first")


def _my_outputs(tile_outputs: int, outputs: int) -> jax.Array:
    """Beyond the last, the last again: what is loaded is there, what is stored twice is equal."""
    mine = pl.program_id(0) * tile_outputs + jnp.arange(tile_outputs, dtype=jnp.int32)
    return jnp.minimum(mine, outputs - 1)


def _eight_bits(
    x_ref: Any,
    values_ref: Any,
    scales_ref: Any,
    out_ref: Any,
    *,
    chunks: int,
    tile_outputs: int,
    interpret: bool,
) -> None:
    """values_ref [out, in], scales_ref [out]."""
    outputs, num_inputs = values_ref.shape
    output = _my_outputs(tile_outputs, outputs)
    inside = _inside(chunks)
    block = chunks * CHUNK

    def add(index: jax.Array, sums: jax.Array) -> jax.Array:
        place = index * block + inside
        values = _stream(values_ref.at[output[:, None, None], place[None]])
        if values.dtype == jnp.float8_e4m3fn:
            wide = widened_float8(values, interpret=interpret)
        else:
            wide = values.astype(jnp.float32)
        x = plt.load(x_ref.at[0, place]).astype(jnp.float32)
        return multiply_add(wide, x[None], sums, interpret=interpret)

    sums = jnp.zeros((tile_outputs, chunks, CHUNK), jnp.float32)
    sums = lax.fori_loop(0, num_inputs // block, add, sums)
    out = sums.sum(2).sum(1) * plt.load(scales_ref.at[output])
    plt.store(out_ref.at[0, output], out.astype(out_ref.dtype))


def _four_bits(
    x_ref: Any,
    values_ref: Any,
    scales_ref: Any,
    *refs: Any,
    chunks: int,
    tile_outputs: int,
    interpret: bool,
) -> None:
    """values_ref [out, in / 2], scales_ref and zeros_ref [out, groups]. Without zeros_ref zeros are
    8."""
    *zeros_refs, out_ref = refs
    (outputs, num_bytes), groups = values_ref.shape, scales_ref.shape[1]
    half = num_bytes // groups
    parts = min(CHUNKS_PER_GROUP, half // CHUNK)
    part_bytes = half // parts
    output = _my_outputs(tile_outputs, outputs)
    # A group is cut into so many parts; a thread takes the chunk at the same place in each.
    thread = jnp.arange(chunks // parts, dtype=jnp.int32)
    inside = jnp.arange(CHUNK, dtype=jnp.int32)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        mine = index * (chunks // parts) + thread
        group = lax.div(mine, part_bytes // CHUNK)
        first = group * half + lax.rem(mine, part_bytes // CHUNK) * CHUNK

        def places(of_first: jax.Array, part: int) -> jax.Array:
            return (of_first + part * part_bytes)[:, None] + inside[None, :]

        packed = [
            _stream(values_ref.at[output[:, None, None], places(first, part)[None]])
            for part in range(parts)
        ]
        raised = jnp.zeros((tile_outputs, chunks // parts, CHUNK), jnp.float32)
        x_sum = jnp.zeros((chunks // parts, CHUNK), jnp.float32)
        for part in range(parts):
            # A byte's low half belongs to an input as far into its group, its high half to one half
            # a group later.
            low_place = places(first + group * half, part)
            low_x, high_x = (
                plt.load(x_ref.at[0, low_place + further]).astype(jnp.float32)
                for further in (0, half)
            )
            low, high = raised_halves(packed[part], interpret=interpret)
            x_sum += low_x + high_x
            raised = multiply_add(high, high_x[None], raised, interpret=interpret)
            raised = multiply_add(low, low_x[None], raised, interpret=interpret)
        its_scale = (output[:, None], group[None, :])
        scale, *zeros = (
            plt.load(ref.at[its_scale]).astype(jnp.float32) for ref in (scales_ref, *zeros_refs)
        )
        zero = zeros[0] if zeros else float(MIDDLE)
        lowered = raised.sum(2) - (zero + RAISED_BY) * x_sum.sum(1)[None]
        return multiply_add(lowered, scale, total, interpret=interpret)

    total = jnp.zeros((tile_outputs, chunks // parts), jnp.float32)
    total = lax.fori_loop(0, num_bytes // (chunks * CHUNK), add, total)
    plt.store(out_ref.at[0, output], total.sum(1).astype(out_ref.dtype))
