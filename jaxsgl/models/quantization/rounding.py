"""From float matrices to quantised ones, on the devices that hold them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgl.models.quantization.matrix import QuantizedMatrix

FLOAT8_MAX = 448.0
INT8_MAX = 127.0


def quantize(values: Any, target: QuantizedMatrix) -> QuantizedMatrix:
    """The abstract matrix `target` with values, from an array of its shape on the host or on
    devices."""
    flat = values.reshape(target.size_2d)
    placed = jax.device_put(flat, target.layout.sharding(*target.axes))
    shardings = target.shardings()
    parts = jax.jit(
        functools.partial(_rounded, scheme=target.scheme, group=target.group),
        out_shardings=(shardings.values, shardings.scales, shardings.zeros),
    )(placed)
    values, scales, zeros = jax.block_until_ready(parts)
    return dataclasses.replace(target, values=values, scales=scales, zeros=zeros)


def _rounded(
    matrix: jax.Array, scheme: str, group: int | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    matrix = matrix.astype(jnp.float32)
    match scheme:
        case "int8":
            scales = _scales(matrix, INT8_MAX)
            values = jnp.round(matrix / scales[:, None]).astype(jnp.int8)
            return values, scales, None
        case "fp8":
            values, scales = float8_rows(matrix)
            return values, scales, None
        case _:
            assert group is not None
            return _four_bits(matrix, group)


def float8_rows(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows in float8_e4m3fn and the float32 scale of each."""
    matrix = matrix.astype(jnp.float32)
    scales = _scales(matrix, FLOAT8_MAX)
    scaled = jnp.clip(matrix / scales[:, None], -FLOAT8_MAX, FLOAT8_MAX)
    return scaled.astype(jnp.float8_e4m3fn), scales


def _scales(rows: jax.Array, largest: float) -> jax.Array:
    """What each row's largest magnitude is divided by to become `largest`."""
    peaks = jnp.abs(rows).max(axis=-1)
    return jnp.where(peaks == 0, 1.0, peaks / largest)


def _four_bits(matrix: jax.Array, group: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Symmetric, 8 being zero: the value of largest magnitude in each group becomes 0, so that all
    16 steps are in use (as in GGUF's Q4_0)."""
    grouped = matrix.reshape(len(matrix), -1, group)
    at = jnp.abs(grouped).argmax(axis=-1, keepdims=True)
    peaks = jnp.take_along_axis(grouped, at, axis=-1)[..., 0]
    scales = (peaks / -8.0).astype(jnp.float16)
    # Of what is stored, not of what it was rounded from.
    used = jnp.where(scales == 0, 1.0, scales.astype(jnp.float32))[..., None]
    numbers = jnp.clip(jnp.round(grouped / used) + 8, 0, 15).astype(jnp.uint8)
    low, high = jnp.split(numbers, 2, axis=-1)
    packed = (low | (high << 4)).reshape(len(matrix), -1)
    return packed, scales, jnp.full(scales.shape, 8, jnp.uint8)
