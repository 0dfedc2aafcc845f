"""The building blocks that every decoder-only transformer here shares, as pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.quantization.product import quantized_product

_LAST_AXES = (((1,), (1,)), ((), ()))
MAX_FEW_TOKENS = 32
MAX_LEFT_OUTPUTS = 16384
"""Beyond either, a CPU gains nothing by weights on the left."""


def linear(
    x: jax.Array, weight: jax.Array | QuantizedMatrix, dtype: DTypeLike | None = None
) -> jax.Array:
    """x [tokens, in] times weight [*out, in] or [out, *in]; gives [tokens, *out].

    Output features come first, as checkpoints store them: with a few tokens XLA's CPU products are
    up to a sixth faster this way round, and a tied output head is the embedding itself. In memory
    they need not: see `sharding.MatrixOrder`. The result is of `dtype`, x's own if None, and is
    rounded once.
    """
    if isinstance(weight, QuantizedMatrix):
        out = quantized_product(x, weight, x.dtype if dtype is None else dtype)
        return out.reshape(len(x), *weight.shape[: weight.num_outputs])
    out_shape = weight.shape[:-1] if weight.shape[-1] == x.shape[-1] else weight.shape[:1]
    matrix = weight.reshape(-1, x.shape[-1])
    product = functools.partial(_product, dtype=dtype)
    if 2 <= len(x) <= MAX_FEW_TOKENS and len(matrix) <= MAX_LEFT_OUTPUTS:
        weights_left = functools.partial(_product_with_weights_left, dtype=dtype)
        out = jax.lax.platform_dependent(x, matrix, cpu=weights_left, default=product)
    else:
        out = product(x, matrix)
    return out.reshape(len(x), *out_shape)


def _product(x: jax.Array, matrix: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    return jax.lax.dot_general(x, matrix, _LAST_AXES, preferred_element_type=dtype)


def _product_with_weights_left(
    x: jax.Array, matrix: jax.Array, dtype: DTypeLike | None
) -> jax.Array:
    """The same, in the order that XLA's CPU library is up to twice as fast in with a few tokens."""
    out = jax.lax.dot_general(matrix, x, _LAST_AXES, preferred_element_type=dtype)
    # Or XLA would turn the product round again, to save the transposition.
    return jax.lax.optimization_barrier(out).T


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """Root-mean-square norm over the last axis (arXiv:1910.07467), computed in float32.

    Scales that are stored less an offset are applied in float32 as well, as Gemma does.
    """
    x32 = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    if offset:
        return (x32 * inverse_rms * (offset + scale.astype(jnp.float32))).astype(x.dtype)
    return scale * (x32 * inverse_rms).astype(x.dtype)


def silu(x: jax.Array) -> jax.Array:
    """x * sigmoid(x), in the form that XLA vectorises best on a CPU."""
    return x / (1.0 + jnp.exp(-x))


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The Gaussian error linear unit in its approximation by tanh (arXiv:1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """x squashed smoothly between -cap and cap; as it is without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
}
"""By their name in `ModelConfig.activation`."""
