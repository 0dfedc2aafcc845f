"""Products of rows with the matrices of their groups: the public function."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.backends import choose
from pallas_kernels.grouped_matmul import triton, xla
from pallas_kernels.quant_matmul.api import check_matrix

BACKENDS = {
    "triton": triton.grouped_matmul,
    # On any device, slowly: for tests.
    "triton-interpret": functools.partial(triton.grouped_matmul, interpret=True),
    "xla": xla.grouped_matmul,
}


@functools.partial(jax.jit, static_argnames=("backend",))
def grouped_matmul(
    x: jax.Array,
    matrices: jax.Array,
    group_sizes: jax.Array,
    scales: jax.Array | None = None,
    zeros: jax.Array | None = None,
    *,
    backend: str = "xla",
) -> jax.Array:
    """x [rows, in] times the matrix of each row's group: [rows, out], in x's dtype.

    group_sizes int32 [groups]: the first group_sizes[0] rows belong to group 0, and so on. Rows
    beyond all groups yield 0, whatever is in them. Without scales matrices are [groups, in, out] of
    x's dtype. With scales they are one of the kinds of `quant_matmul`, its axes [out, in] turned
    round:

    - int8 or float8_e4m3fn [groups, in, out], scales float32 [groups, out];
    - uint8 [groups, in / 2, out], two halves of g inputs in a byte, with scales float16 and zeros
      uint8 [groups, in / g, out]. Zeros are 8 if left out.

    x is multiplied as it is, and sums are float32. Raises ValueError for shapes and dtypes that do
    not fit, and for an unknown backend.
    """
    groups, num_inputs = len(matrices), x.shape[1]
    if scales is not None:
        check_matrix(matrices, scales, zeros, num_inputs)
    elif matrices.shape[1] != num_inputs or x.dtype != matrices.dtype or zeros is not None:
        raise ValueError(
            f"x {x.dtype}{list(x.shape)} does not fit matrices "
            f"{matrices.dtype}{list(matrices.shape)}"
        )
    if group_sizes.shape != (groups,) or group_sizes.dtype != jnp.int32:
        raise ValueError(
            f"group_sizes must be int32[{groups}], not {group_sizes.dtype}{list(group_sizes.shape)}"
        )
    return choose(backend, BACKENDS)(x, matrices, group_sizes, scales, zeros)
