"""Products of rows with the matrices of their groups, by XLA."""

from __future__ import annotations

import jax


def grouped_matmul(x: jax.Array, matrices: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """See `api.grouped_matmul`. On GPUs JAX 0.11.2 makes one masked product of all groups, which
    takes memory in proportion to groups times rows."""
    return jax.lax.ragged_dot(x, matrices, group_sizes)
