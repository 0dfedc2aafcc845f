"""Products of rows with the matrices of their groups: the public function."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.backends import choose
from pallas_kernels.grouped_matmul import triton, xla

BACKENDS = {
    "triton": triton.grouped_matmul,
    # On any device, slowly: for tests.
    "triton-interpret": functools.partial(triton.grouped_matmul, interpret=True),
    "xla": xla.grouped_matmul,
}


@functools.partial(jax.jit, static_argnames=("backend",))
def grouped_matmul(
    x: jax.Array, matrices: jax.Array, group_sizes: jax.Array, *, backend: str = "xla"
) -> jax.Array:
    """x [rows, in] times the matrix of each row's group, [groups, in, out]: [rows, out], in x's
    dtype.

    group_sizes int32 [groups]: the first group_sizes[0] rows belong to group 0, and so on. Rows
    beyond all groups yield 0, whatever is in them. Sums are float32.

    Raises ValueError for shapes and dtypes that do not fit, and for an unknown backend.
    """
    groups, num_inputs, _ = matrices.shape
    if x.ndim != 2 or x.shape[1] != num_inputs or x.dtype != matrices.dtype:
        raise ValueError(
            f"x {x.dtype}{list(x.shape)} does not fit matrices "
            f"{matrices.dtype}{list(matrices.shape)}"
        )
    if group_sizes.shape != (groups,) or group_sizes.dtype != jnp.int32:
        raise ValueError(
            f"group_sizes must be int32[{groups}], not {group_sizes.dtype}{list(group_sizes.shape)}"
        )
    return choose(backend, BACKENDS)(x, matrices, group_sizes)
