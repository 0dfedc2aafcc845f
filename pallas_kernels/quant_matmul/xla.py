"""Products with quantised matrices in plain jnp."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.four_bits import MIDDLE

_LAST_AXES = (((1,), (1,)), ((), ()))


def quant_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    dtype: Any,
) -> jax.Array:
    """See `api.quant_matmul`. A matrix of 4 bits is first written out in x's dtype."""
    if scales.ndim == 2:
        matrix = unpacked(values, scales, zeros).astype(x.dtype)
        return jax.lax.dot_general(x, matrix, _LAST_AXES, preferred_element_type=dtype)
    if x.dtype == values.dtype:  # float8
        # Of the result's type, or a GPU would write and read twice the bytes.
        by_library = functools.partial(_float8_product, dtype=dtype)
        widened = functools.partial(_widened_product, dtype=dtype)
        product = jax.lax.platform_dependent(x, values, cuda=by_library, default=widened)
    else:
        product = jax.lax.dot_general(
            x, values.astype(x.dtype), _LAST_AXES, preferred_element_type=jnp.float32
        )
    return (product * scales).astype(dtype)


def unpacked(values: jax.Array, scales: jax.Array, zeros: jax.Array | None) -> jax.Array:
    """The float32 matrix [out, in] of packed values; see `api.quant_matmul`. Inputs may be axis 1
    of more than two."""
    outputs, groups, *rest = scales.shape
    halves = values.reshape(outputs, groups, -1, *rest)
    numbers = jnp.concatenate([halves & 15, halves >> 4], axis=2).astype(jnp.float32)
    centred = numbers - (MIDDLE if zeros is None else zeros.astype(jnp.float32)[:, :, None])
    widened = centred * scales.astype(jnp.float32)[:, :, None]
    return widened.reshape(outputs, 2 * values.shape[1], *rest)


def _float8_product(x: jax.Array, values: jax.Array, *, dtype: Any) -> jax.Array:
    """For a library that has products of this kind."""
    return jax.lax.dot_general(x, values, _LAST_AXES, preferred_element_type=dtype)


def _widened_product(x: jax.Array, values: jax.Array, *, dtype: Any) -> jax.Array:
    """The same values in float32, which has room for their products."""
    wide = x.astype(jnp.float32), values.astype(jnp.float32)
    return jax.lax.dot_general(*wide, _LAST_AXES).astype(dtype)
