"""Products of rows with the matrices of their groups for Pallas-Triton.

A program computes a tile of one group's rows and some outputs. A group's last tile has rows to
spare, so that there are at most rows / tile rows + groups tiles, whatever the sizes are: programs
beyond those in use end at once. Of a matrix that no row has nothing is read. Values of 8 and 4 bits
are widened in registers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.four_bits import both_halves

MIN_SIDE = 16
"""Of a product, which tensor cores ask for."""
MAX_TILE_ROWS = 128
MAX_TILE_OUTPUTS = 128
MAX_FOUR_BIT_OUTPUTS = 64
"""Beside the sums of a tile, registers hold those of a group of inputs."""
MIN_TILE_OUTPUTS = 32
ENOUGH_PROGRAMS = 400
"""Three for each multiprocessor of an H100: with fewer tiles they are made narrower."""
MAX_BLOCK_INPUTS = 64
MAX_FLOAT32_SIDE = 32
"""Without tensor cores what counts is that a tile fits the registers."""


def grouped_matmul(
    x: jax.Array,
    matrices: jax.Array,
    group_sizes: jax.Array,
    scales: jax.Array | None,
    zeros: jax.Array | None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `api.grouped_matmul`."""
    rows, num_inputs = x.shape
    groups, _, outputs = matrices.shape
    side = MAX_FLOAT32_SIDE if x.dtype.itemsize > 2 else MAX_TILE_ROWS
    if scales is not None and matrices.dtype == jnp.uint8:
        sums = functools.partial(_four_bit_sums, interpret=interpret)
        most_outputs, block = MAX_FOUR_BIT_OUTPUTS, num_inputs // scales.shape[1]
    else:
        sums = _sums
        most_outputs = MAX_TILE_OUTPUTS
        block = _divisor(num_inputs, min(side, MAX_BLOCK_INPUTS))
    tile_rows = min(max(pl.next_power_of_2(pl.cdiv(rows, groups)), MIN_SIDE), side)
    tile_outputs = _divisor(outputs, min(side, most_outputs))
    tiles = tile_map(group_sizes, rows, tile_rows)
    while tile_outputs > MIN_TILE_OUTPUTS and len(tiles) * outputs < ENOUGH_PROGRAMS * tile_outputs:
        tile_outputs //= 2

    def whole(array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    parts = [part for part in (matrices, scales, zeros) if part is not None]
    few = tile_rows < 64
    return pl.pallas_call(
        functools.partial(_tile, sums=sums, shape=(tile_rows, tile_outputs), block=block),
        # Tiles of one group follow one another, so that its matrix is read from memory once.
        grid=(len(tiles), pl.cdiv(outputs, tile_outputs)),
        in_specs=[
            pl.BlockSpec((None, 3), lambda tile, _: (tile, 0)),
            whole(x),
            *map(whole, parts),
        ],
        out_specs=pl.BlockSpec((rows, outputs), lambda *_: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), x.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=4 if few else 3),
        interpret=interpret,
        name="grouped_matmul",
    )(tiles, x, *parts)


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


class _Place(NamedTuple):
    """What a tile is made of."""

    row: jax.Array
    """[tile rows, 1]"""
    matrix: jax.Array
    output: jax.Array
    """[1, tile outputs]; those beyond the last are not there."""


def _tile(
    tile_ref: Any,
    x_ref: Any,
    matrices_ref: Any,
    *refs: Any,
    sums: Callable[..., jax.Array],
    shape: tuple[int, int],
    block: int,
) -> None:
    """One tile: tile_ref [3], x_ref [rows, in], matrices_ref and what scales them as in
    `api.grouped_matmul`, out_ref [rows, out]. `block` inputs are added up at a time."""
    *scale_refs, out_ref = refs
    group, start, count = (tile_ref[index] for index in range(3))
    groups, outputs = matrices_ref.shape[0], out_ref.shape[1]
    tile_rows, tile_outputs = shape
    output = pl.program_id(1) * tile_outputs + jnp.arange(tile_outputs, dtype=jnp.int32)
    output = output[None, :]

    @pl.when(count > 0)
    def _() -> None:
        # The last row again in place of those that a tile has to spare: what is stored twice is
        # equal.
        row = (start + jnp.minimum(jnp.arange(tile_rows, dtype=jnp.int32), count - 1))[:, None]
        place = _Place(row, jnp.minimum(group, jnp.int32(groups - 1)), output)
        # Rows beyond all groups meet no inputs.
        end = jnp.where(group < groups, jnp.int32(pl.cdiv(x_ref.shape[1], block)), 0)
        total = sums(x_ref, matrices_ref, *scale_refs, place=place, end=end, block=block)
        plt.store(
            out_ref.at[row, output],
            total.astype(out_ref.dtype),
            mask=jnp.broadcast_to(output < outputs, shape),
        )


def _sums(
    x_ref: Any,
    matrices_ref: Any,
    scales_ref: Any = None,
    *,
    place: _Place,
    end: jax.Array,
    block: int,
) -> jax.Array:
    """Of `end` blocks of inputs; values take a byte or more each."""
    row, matrix, output = place
    _, num_inputs, outputs = matrices_ref.shape

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        input_ = index * block + jnp.arange(block, dtype=jnp.int32)
        across, down = input_[None, :], input_[:, None]
        x = _load(x_ref.at[row, across], across < num_inputs, (len(row), block))
        is_there = (down < num_inputs) & (output < outputs)
        values = _load(matrices_ref.at[matrix, down, output], is_there, (block, output.size))
        return total + _dot(x, values.astype(x.dtype))

    nothing = jnp.zeros((len(row), output.size), jnp.float32)
    total = lax.fori_loop(jnp.int32(0), end, add, nothing)
    if scales_ref is None:
        return total
    return total * _load(scales_ref.at[matrix, output], output < outputs, output.shape)


def _four_bit_sums(
    x_ref: Any,
    values_ref: Any,
    *scale_refs: Any,
    place: _Place,
    end: jax.Array,
    block: int,
    interpret: bool,
) -> jax.Array:
    """Of `end` groups of inputs, a block each; scale_refs are scales and zeros, if any."""
    row, matrix, output = place
    outputs, half = values_ref.shape[2], block // 2
    is_there = output < outputs
    inside = jnp.arange(half, dtype=jnp.int32)

    def scale_and_zero(index: jax.Array) -> tuple[jax.Array, ...]:
        index = jnp.minimum(index, scale_refs[0].shape[1] - 1)
        return tuple(
            _load(ref.at[matrix, index, output], is_there, output.shape) for ref in scale_refs
        )

    def add(index: jax.Array, carry: Any) -> Any:
        total, (scale, *zeros) = carry
        down = (index * half + inside)[:, None]
        packed = _load(values_ref.at[matrix, down, output], is_there, (half, output.size))
        # Loaded one group ahead: no product waits for them.
        following = scale_and_zero(index + 1)
        zero = zeros[0] if zeros else None
        halves = both_halves(packed, zero, x_ref.dtype, interpret=interpret)
        part = jnp.zeros_like(total)
        for first, values in zip((0, half), halves, strict=True):
            across = (index * block + first + inside)[None, :]
            part += _dot(plt.load(x_ref.at[row, across]), values)
        # Scales are applied to the sums.
        return total + part * scale.astype(jnp.float32), following

    nothing = jnp.zeros((len(row), output.size), jnp.float32)
    first = scale_and_zero(jnp.int32(0))
    total, _ = lax.fori_loop(jnp.int32(0), end, add, (nothing, first))
    return total


def _dot(x: jax.Array, values: jax.Array) -> jax.Array:
    return plt.dot(x, values, precision=lax.Precision.HIGHEST)


def _load(ref: Any, is_there: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return plt.load(ref, mask=jnp.broadcast_to(is_there, shape), other=jnp.zeros((), ref.dtype))
