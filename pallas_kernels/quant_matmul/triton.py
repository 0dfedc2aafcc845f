"""Products with quantised matrices for Pallas-Triton: values are widened in registers, so that of a
matrix no more is read than it has.

A program computes a tile of tokens and outputs over its share of the inputs, `BLOCK_INPUTS` (or one
group) at a time. Where tiles are too few to keep a GPU busy, inputs are split among several
programs, and their sums are added afterwards.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

MIN_DOT_ROWS = 16
MAX_TILE_TOKENS = 64
TILE_OUTPUTS = 32
BLOCK_INPUTS = 128
ENOUGH_PROGRAMS = 400
"""Three for each multiprocessor of an H100."""
MAX_SPLITS = 8
MIN_BLOCKS_PER_SPLIT = 4
NUM_WARPS = 4
NUM_STAGES = 4


def quant_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    dtype: Any,
    interpret: bool = False,
) -> jax.Array:
    """See `api.quant_matmul`."""
    (tokens, num_inputs), outputs = x.shape, values.shape[0]
    if zeros is None:
        block = _largest_power_of_two(num_inputs, BLOCK_INPUTS)
        matrix = [values]
        tile = _eight_bit_tile
    else:
        block = num_inputs // scales.shape[1]
        matrix = [values, scales, zeros]
        tile = _four_bit_tile
    num_blocks = num_inputs // block
    tile_tokens = min(max(pl.next_power_of_2(tokens), MIN_DOT_ROWS), MAX_TILE_TOKENS)
    tiles = pl.cdiv(outputs, TILE_OUTPUTS) * pl.cdiv(tokens, tile_tokens)
    splits = _num_splits(tiles, num_blocks)

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    sums = pl.pallas_call(
        functools.partial(tile, block=block, num_blocks=num_blocks, tile_tokens=tile_tokens),
        grid=(pl.cdiv(outputs, TILE_OUTPUTS), pl.cdiv(tokens, tile_tokens), splits),
        in_specs=[whole(array) for array in (x, *matrix)],
        out_specs=pl.BlockSpec((None, tokens, outputs), lambda n, m, split: (split, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((splits, tokens, outputs), jnp.float32),
        compiler_params=plt.CompilerParams(num_warps=NUM_WARPS, num_stages=NUM_STAGES),
        interpret=interpret,
        name="quant_matmul",
    )(x, *matrix)
    product = sums[0] if splits == 1 else sums.sum(0)
    return (product if zeros is not None else product * scales).astype(dtype)


def _largest_power_of_two(size: int, limit: int) -> int:
    """That divides `size`, up to `limit`."""
    return min(size & -size, limit)


def _num_splits(tiles: int, num_blocks: int) -> int:
    splits = 1
    while (
        splits < MAX_SPLITS
        and tiles * splits < ENOUGH_PROGRAMS
        and num_blocks >= 2 * splits * MIN_BLOCKS_PER_SPLIT
    ):
        splits *= 2
    return splits


def _places(tile_tokens: int, tokens: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Tokens and outputs of this program; beyond the last, the last again: what is loaded is there,
    and what is stored twice is equal."""
    output = pl.program_id(0) * TILE_OUTPUTS + jnp.arange(TILE_OUTPUTS, dtype=jnp.int32)
    token = pl.program_id(1) * tile_tokens + jnp.arange(tile_tokens, dtype=jnp.int32)
    return jnp.minimum(token, tokens - 1), jnp.minimum(output, outputs - 1)


def _my_blocks(num_blocks: int) -> tuple[jax.Array, jax.Array]:
    """The first block of inputs of this program, and the one behind its last."""
    splits = pl.num_programs(2)
    each = lax.div(num_blocks + splits - 1, splits)
    begin = pl.program_id(2) * each
    return begin, jnp.minimum(begin + each, num_blocks)


def _dot(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x [tokens, inputs] times matrix [outputs, inputs], float32."""
    return plt.dot(x, matrix, trans_b=True, precision=lax.Precision.HIGHEST)


def _eight_bit_tile(
    x_ref: Any, values_ref: Any, out_ref: Any, *, block: int, num_blocks: int, tile_tokens: int
) -> None:
    """x_ref [tokens, in], values_ref [out, in], out_ref [tokens, out] without scales."""
    token, output = _places(tile_tokens, *out_ref.shape)
    inside = jnp.arange(block, dtype=jnp.int32)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        place = (index * block + inside)[None, :]
        values = plt.load(values_ref.at[output[:, None], place])
        x = plt.load(x_ref.at[token[:, None], place])
        return total + _dot(x, values.astype(x.dtype))

    zero = jnp.zeros((tile_tokens, TILE_OUTPUTS), jnp.float32)
    total = lax.fori_loop(*_my_blocks(num_blocks), add, zero)
    plt.store(out_ref.at[token[:, None], output[None, :]], total)


def _four_bit_tile(
    x_ref: Any,
    values_ref: Any,
    scales_ref: Any,
    zeros_ref: Any,
    out_ref: Any,
    *,
    block: int,
    num_blocks: int,
    tile_tokens: int,
) -> None:
    """x_ref [tokens, in], values_ref [out, in / 2], scales_ref and zeros_ref [out, groups], out_ref
    [tokens, out]; a block is a group."""
    token, output = _places(tile_tokens, *out_ref.shape)
    half = block // 2
    inside = jnp.arange(half, dtype=jnp.int32)

    def add(group: jax.Array, total: jax.Array) -> jax.Array:
        packed = plt.load(values_ref.at[output[:, None], (group * half + inside)[None, :]])
        mine = (output, jnp.full_like(output, group))
        scale = plt.load(scales_ref.at[mine]).astype(jnp.float32)
        zero = plt.load(zeros_ref.at[mine]).astype(x_ref.dtype)[:, None]
        part = jnp.zeros_like(total)
        # Differences of small integers: exact in any dtype. Scales are applied to the sums.
        for first, number in ((0, packed & 15), (half, packed >> 4)):
            x = plt.load(x_ref.at[token[:, None], (group * block + first + inside)[None, :]])
            part += _dot(x, number.astype(x.dtype) - zero)
        return total + part * scale[None, :]

    zero = jnp.zeros((tile_tokens, TILE_OUTPUTS), jnp.float32)
    total = lax.fori_loop(*_my_blocks(num_blocks), add, zero)
    plt.store(out_ref.at[token[:, None], output[None, :]], total)
