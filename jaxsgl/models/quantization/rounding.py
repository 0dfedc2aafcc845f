"""From float matrices to quantised ones, on the devices that hold them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.sharding import placed

FLOAT8_MAX = 448.0
INT8_MAX = 127.0
FOUR_BIT_ZERO = 8
"""What stands for zero in 4 bits where nothing else is said."""
NUM_FACTORS = 16
"""Scales that are tried for each output of a float8 matrix."""


def quantize(values: Any, target: QuantizedMatrix) -> QuantizedMatrix:
    """The abstract matrix `target` with values, from an array of its shape on the host or on
    devices."""
    flat = values.reshape(target.size)
    whole = placed(flat, target.layout.sharding(*target.axes))
    shardings = target.shardings()
    # Of one function, so that matrices of a shape are compiled for once.
    parts = jax.jit(
        _rounded,
        static_argnames=("scheme", "group"),
        out_shardings=(shardings.values, shardings.scales),
    )(whole, scheme=target.scheme, group=target.group)
    values, scales = jax.block_until_ready(parts)
    zeros = None
    if target.zeros is not None:
        eights = functools.partial(jnp.full, target.zeros.shape, FOUR_BIT_ZERO, jnp.uint8)
        zeros = jax.jit(eights, out_shardings=shardings.zeros)()
    return dataclasses.replace(target, values=values, scales=scales, zeros=zeros)


def _rounded(matrix: jax.Array, scheme: str, group: int | None) -> tuple[jax.Array, jax.Array]:
    """Values and scales of a matrix, whose inputs are axis 1."""
    matrix = matrix.astype(jnp.float32)
    match scheme:
        case "int8":
            scales = _scales(matrix, INT8_MAX)
            values = jnp.round(matrix / scales[:, None]).astype(jnp.int8)
            return values, scales
        case "fp8":
            scales = _scales(matrix, FLOAT8_MAX) * _best_factors(matrix)
            return _float8(matrix, scales), scales
        case _:
            assert group is not None
            return _four_bits(matrix, group)


def float8_rows(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows in float8_e4m3fn and the float32 scale of each."""
    matrix = matrix.astype(jnp.float32)
    scales = _scales(matrix, FLOAT8_MAX)
    return _float8(matrix, scales), scales


def _float8(matrix: jax.Array, scales: jax.Array) -> jax.Array:
    scaled = jnp.clip(matrix / scales[:, None], -FLOAT8_MAX, FLOAT8_MAX)
    return scaled.astype(jnp.float8_e4m3fn)


def _best_factors(matrix: jax.Array) -> jax.Array:
    """By how much the scale of each output is to exceed the least possible, from 1 to 2, so that
    the squares of what rounding to float8 changes sum to least. Steps double at powers of two:
    where those fall among an output's values decides, and comes round at twice the scale."""
    least = _scales(matrix, FLOAT8_MAX)
    factors = 2.0 ** (jnp.arange(NUM_FACTORS) / NUM_FACTORS)

    def error(factor: jax.Array) -> jax.Array:
        scales = least * factor
        rounded = _float8(matrix, scales).astype(jnp.float32) * scales[:, None]
        return jnp.square(rounded - matrix).sum(1)

    return factors[jax.lax.map(error, factors).argmin(0)]


def _scales(matrix: jax.Array, largest: float) -> jax.Array:
    """What the largest magnitude along axis 1 is divided by to become `largest`."""
    peaks = jnp.abs(matrix).max(axis=1)
    return jnp.where(peaks == 0, 1.0, peaks / largest)


def _four_bits(matrix: jax.Array, group: int) -> tuple[jax.Array, jax.Array]:
    """Symmetric, 8 being zero: the value of largest magnitude in each group becomes 0, so that all
    16 steps are in use (as in GGUF's Q4_0)."""
    first, inputs, *last = matrix.shape
    grouped = matrix.reshape(first, inputs // group, group, *last)
    at = jnp.abs(grouped).argmax(axis=2, keepdims=True)
    peaks = jnp.take_along_axis(grouped, at, axis=2)[:, :, 0]
    scales = (peaks / -8.0).astype(jnp.float16)
    # Of what is stored, not of what it was rounded from.
    used = jnp.where(scales == 0, 1.0, scales.astype(jnp.float32))[:, :, None]
    numbers = jnp.clip(jnp.round(grouped / used) + FOUR_BIT_ZERO, 0, 15).astype(jnp.uint8)
    low, high = jnp.split(numbers, 2, axis=2)
    packed = (low | (high << 4)).reshape(first, inputs // 2, *last)
    return packed, scales
