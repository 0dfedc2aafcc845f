"""Products with quantised matrices in plain jnp."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

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
    if zeros is not None:
        matrix = unpacked(values, scales, zeros).astype(x.dtype)
        return jax.lax.dot_general(x, matrix, _LAST_AXES, preferred_element_type=dtype)
    if x.dtype == values.dtype:  # float8
        product = jax.lax.platform_dependent(
            x, values, cuda=_float8_product, default=_widened_product
        )
    else:
        product = jax.lax.dot_general(
            x, values.astype(x.dtype), _LAST_AXES, preferred_element_type=jnp.float32
        )
    return (product * scales).astype(dtype)


def unpacked(values: jax.Array, scales: jax.Array, zeros: jax.Array) -> jax.Array:
    """The float32 matrix [out, in] of packed values; see `api.quant_matmul`."""
    outputs, groups = scales.shape
    halves = values.reshape(outputs, groups, -1)
    numbers = jnp.concatenate([halves & 15, halves >> 4], axis=2).astype(jnp.float32)
    centred = numbers - zeros.astype(jnp.float32)[:, :, None]
    return (centred * scales.astype(jnp.float32)[:, :, None]).reshape(outputs, -1)


def _float8_product(x: jax.Array, values: jax.Array) -> jax.Array:
    """For a library that has products of this kind."""
    return jax.lax.dot_general(x, values, _LAST_AXES, preferred_element_type=jnp.float32)


def _widened_product(x: jax.Array, values: jax.Array) -> jax.Array:
    """The same values in float32, which has room for their products."""
    return jax.lax.dot_general(x.astype(jnp.float32), values.astype(jnp.float32), _LAST_AXES)
