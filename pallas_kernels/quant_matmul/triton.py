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

from pallas_kernels.four_bits import both_halves
from pallas_kernels.quant_matmul.triton_one_token import one_token_matmul

MIN_DOT_ROWS = 16
MAX_TILE_TOKENS = 64
TILE_OUTPUTS = {8: 32, 4: 64}
"""By bits. Every tile reads the tokens again, which costs more beside half the bytes."""
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
    if tokens == 1:
        return one_token_matmul(x, values, scales, zeros, dtype=dtype, interpret=interpret)
    if scales.ndim == 1:
        block = _largest_power_of_two(num_inputs, BLOCK_INPUTS)
        matrix = [values]
        tile, tile_outputs = _eight_bit_tile, TILE_OUTPUTS[8]
    else:
        block = num_inputs // scales.shape[1]
        matrix = [values, scales] if zeros is None else [values, scales, zeros]
        tile = functools.partial(_four_bit_tile, interpret=interpret)
        tile_outputs = TILE_OUTPUTS[4]
    num_blocks = num_inputs // block
    tile_tokens = min(max(pl.next_power_of_2(tokens), MIN_DOT_ROWS), MAX_TILE_TOKENS)
    tiles = pl.cdiv(outputs, tile_outputs) * pl.cdiv(tokens, tile_tokens)
    splits = _num_splits(tiles, num_blocks)

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    sums = pl.pallas_call(
        functools.partial(
            tile, block=block, num_blocks=num_blocks, shape=(tile_tokens, tile_outputs)
        ),
        grid=(pl.cdiv(outputs, tile_outputs), pl.cdiv(tokens, tile_tokens), splits),
        in_specs=[whole(array) for array in (x, *matrix)],
        out_specs=pl.BlockSpec((None, tokens, outputs), lambda n, m, split: (split, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((splits, tokens, outputs), jnp.float32),
        compiler_params=plt.CompilerParams(num_warps=NUM_WARPS, num_stages=NUM_STAGES),
        interpret=interpret,
        name="quant_matmul",
    )(x, *matrix)
    product = sums[0] if splits == 1 else sums.sum(0)
    return (product * scales if scales.ndim == 1 else product).astype(dtype)


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


def _places(shape: tuple[int, int], tokens: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Tokens and outputs of this program; beyond the last, the last again: what is loaded is there,
    and what is stored twice is equal."""
    tile_tokens, tile_outputs = shape
    output = pl.program_id(0) * tile_outputs + jnp.arange(tile_outputs, dtype=jnp.int32)
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
    x_ref: Any,
    values_ref: Any,
    out_ref: Any,
    *,
    block: int,
    num_blocks: int,
    shape: tuple[int, int],
) -> None:
    """x_ref [tokens, in], values_ref [out, in], out_ref [tokens, out] without scales; `shape` is
    the tile's."""
    token, output = _places(shape, *out_ref.shape)
    inside = jnp.arange(block, dtype=jnp.int32)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        place = (index * block + inside)[None, :]
        values = plt.load(values_ref.at[output[:, None], place])
        x = plt.load(x_ref.at[token[:, None], place])
        return total + _dot(x, values.astype(x.dtype))

    zero = jnp.zeros(shape, jnp.float32)
    total = lax.fori_loop(*_my_blocks(num_blocks), add, zero)
    plt.store(out_ref.at[token[:, None], output[None, :]], total)


def _four_bit_tile(
    x_ref: Any,
    values_ref: Any,
    scales_ref: Any,
    *refs: Any,
    block: int,
    num_blocks: int,
    shape: tuple[int, int],
    interpret: bool,
) -> None:
    """x_ref [tokens, in], values_ref [out, in / 2], scales_ref and zeros_ref [out, groups], out_ref
    [tokens, out]; a block is a group. Without zeros_ref zeros are 8."""
    *zeros_refs, out_ref = refs
    token, output = _places(shape, *out_ref.shape)
    half = block // 2
    inside = jnp.arange(half, dtype=jnp.int32)

    def scale_and_zero(group: jax.Array) -> tuple[jax.Array, ...]:
        mine = (output, jnp.full_like(output, jnp.minimum(group, num_blocks - 1)))
        return tuple(plt.load(ref.at[mine]) for ref in (scales_ref, *zeros_refs))

    def add(group: jax.Array, carry: Any) -> Any:
        total, (scale, *zeros) = carry
        packed = plt.load(values_ref.at[output[:, None], (group * half + inside)[None, :]])
        # Loaded one group ahead: no product waits for them.
        following = scale_and_zero(group + 1)
        zero = zeros[0][:, None] if zeros else None
        halves = both_halves(packed, zero, x_ref.dtype, interpret=interpret)
        part = jnp.zeros_like(total)
        for first, matrix in zip((0, half), halves, strict=True):
            x = plt.load(x_ref.at[token[:, None], (group * block + first + inside)[None, :]])
            part += _dot(x, matrix)
        # Scales are applied to the sums.
        return total + part * scale.astype(jnp.float32)[None, :], following

    begin, end = _my_blocks(num_blocks)
    nothing = jnp.zeros(shape, jnp.float32)
    total, _ = lax.fori_loop(begin, end, add, (nothing, scale_and_zero(begin)))
    plt.store(out_ref.at[token[:, None], output[None, :]], total)
