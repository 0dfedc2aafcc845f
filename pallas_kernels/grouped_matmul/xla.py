"""Products of rows with the matrices of their groups, by XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.quant_matmul.xla import unpacked


def grouped_matmul(
    x: jax.Array,
    matrices: jax.Array,
    group_sizes: jax.Array,
    scales: jax.Array | None,
    zeros: jax.Array | None,
) -> jax.Array:
    """See `api.grouped_matmul`; quantised matrices are first written out in x's dtype. On GPUs JAX
    0.11.2 makes one masked product of all groups, which takes memory in proportion to groups times
    rows."""
    if scales is None:
        return jax.lax.ragged_dot(x, matrices, group_sizes)
    if matrices.dtype == jnp.uint8:
        widened = unpacked(matrices, scales, zeros).astype(x.dtype)
        return jax.lax.ragged_dot(x, widened, group_sizes)
    sums = jax.lax.ragged_dot(
        x, matrices.astype(x.dtype), group_sizes, preferred_element_type=jnp.float32
    )
    # Rows beyond all groups, which are 0, get some scale.
    group = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(len(x)), side="right")
    return (sums * scales.at[group].get(mode="clip")).astype(x.dtype)
