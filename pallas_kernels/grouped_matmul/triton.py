"""Products of rows with the matrices of their groups for Pallas-Triton.

A program computes a tile of one group's rows and some outputs. A group's last tile has rows to
spare, so that there are at most rows / tile rows + groups tiles, whatever the sizes are: programs
beyond those in use end at once. Of a matrix that no row has nothing is read.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

MIN_SIDE = 16
"""Of a product, which tensor cores ask for."""
MAX_TILE_ROWS = 128
MAX_TILE_OUTPUTS = 128
MIN_TILE_OUTPUTS = 32
ENOUGH_PROGRAMS = 400
"""Three for each multiprocessor of an H100: with fewer tiles they are made narrower."""
MAX_BLOCK_INPUTS = 64
MAX_FLOAT32_SIDE = 32
"""Without tensor cores what counts is that a tile fits the registers."""


def grouped_matmul(
    x: jax.Array, matrices: jax.Array, group_sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """See `api.grouped_matmul`."""
    rows, num_inputs = x.shape
    groups, _, outputs = matrices.shape
    side = MAX_FLOAT32_SIDE if x.dtype.itemsize > 2 else MAX_TILE_ROWS
    tile_rows = min(max(pl.next_power_of_2(pl.cdiv(rows, groups)), MIN_SIDE), side)
    tile_outputs = _divisor(outputs, min(side, MAX_TILE_OUTPUTS))
    tiles = tile_map(group_sizes, rows, tile_rows)
    while tile_outputs > MIN_TILE_OUTPUTS and len(tiles) * outputs < ENOUGH_PROGRAMS * tile_outputs:
        tile_outputs //= 2

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    few = tile_rows < 64
    return pl.pallas_call(
        functools.partial(
            _tile,
            shape=(tile_rows, tile_outputs),
            block=_divisor(num_inputs, min(side, MAX_BLOCK_INPUTS)),
        ),
        # Tiles of one group follow one another, so that its matrix is read from memory once.
        grid=(len(tiles), pl.cdiv(outputs, tile_outputs)),
        in_specs=[
            pl.BlockSpec((None, 3), lambda tile, _: (tile, 0)),
            whole(x),
            whole(matrices),
        ],
        out_specs=pl.BlockSpec((rows, outputs), lambda *_: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), x.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=4 if few else 3),
        interpret=interpret,
        name="grouped_matmul",
    )(tiles, x, matrices)


def _divisor(size: int, most: int) -> int:
    """The largest power of two up to `most` that divides `size`, but never below what a product
    asks for."""
    return max(min(size & -size, most), MIN_SIDE)


def tile_map(group_sizes: jax.Array, rows: int, tile_rows: int) -> jax.Array:
    """The rows in tiles of at most `tile_rows` of one group, in order; int32 [tiles, 3].

    A tile is its group, its first row and the number of its rows. Rows beyond all groups are a
    group of their own, the one behind the last. There are as many tiles as the worst case needs;
    those that are left over have no rows.
    """
    groups = len(group_sizes)
    sizes = jnp.append(group_sizes, rows - group_sizes.sum())
    num_tiles = (sizes + tile_rows - 1) // tile_rows
    ends = jnp.cumsum(num_tiles)
    starts = jnp.cumsum(sizes) - sizes
    most = rows // tile_rows + min(groups + 1, rows)
    tile = lax.iota(jnp.int32, most)
    group = jnp.sum(tile[:, None] >= ends, axis=1)
    is_used = group <= groups
    group = jnp.minimum(group, groups)
    first = (tile - ends[group] + num_tiles[group]) * tile_rows
    count = jnp.where(is_used, jnp.minimum(sizes[group] - first, tile_rows), 0)
    return jnp.stack([group, starts[group] + first, count], axis=1).astype(jnp.int32)


def _tile(
    tile_ref: Any,
    x_ref: Any,
    matrices_ref: Any,
    out_ref: Any,
    *,
    shape: tuple[int, int],
    block: int,
) -> None:
    """One tile: tile_ref [3], x_ref [rows, in], matrices_ref [groups, in, out], out_ref [rows,
    out]."""
    group, start, count = (tile_ref[index] for index in range(3))
    groups, num_inputs, outputs = matrices_ref.shape
    tile_rows, tile_outputs = shape
    output = pl.program_id(1) * tile_outputs + jnp.arange(tile_outputs, dtype=jnp.int32)
    output = output[None, :]

    @pl.when(count > 0)
    def _() -> None:
        # The last row again in place of those that a tile has to spare: what is stored twice is
        # equal.
        row = (start + jnp.minimum(jnp.arange(tile_rows, dtype=jnp.int32), count - 1))[:, None]
        matrix = jnp.minimum(group, jnp.int32(groups - 1))

        def add(index: jax.Array, total: jax.Array) -> jax.Array:
            place = index * block + jnp.arange(block, dtype=jnp.int32)
            across, down = place[None, :], place[:, None]
            x = _load(x_ref.at[row, across], across < num_inputs, (tile_rows, block))
            is_there = (down < num_inputs) & (output < outputs)
            weights = _load(matrices_ref.at[matrix, down, output], is_there, (block, tile_outputs))
            return total + plt.dot(x, weights, precision=lax.Precision.HIGHEST)

        # Rows beyond all groups meet no inputs.
        end = jnp.where(group < groups, jnp.int32(pl.cdiv(num_inputs, block)), 0)
        total = lax.fori_loop(jnp.int32(0), end, add, jnp.zeros(shape, jnp.float32))
        plt.store(
            out_ref.at[row, output],
            total.astype(out_ref.dtype),
            mask=jnp.broadcast_to(output < outputs, shape),
        )


def _load(ref: Any, is_there: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return plt.load(ref, mask=jnp.broadcast_to(is_there, shape), other=jnp.zeros((), ref.dtype))
