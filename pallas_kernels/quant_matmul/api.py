"""Products with quantised matrices: the public function."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.backends import choose
from pallas_kernels.quant_matmul import triton, xla

BACKENDS = {
    "triton": triton.quant_matmul,
    # On any device, slowly: for tests.
    "triton-interpret": functools.partial(triton.quant_matmul, interpret=True),
    "xla": xla.quant_matmul,
}
FLOAT8 = jnp.float8_e4m3fn
MIN_GROUP = 32


@functools.partial(jax.jit, static_argnames=("dtype", "backend"))
def quant_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    dtype: DTypeLike,
    backend: str = "xla",
) -> jax.Array:
    """x [tokens, in] times the transposed matrix [out, in], in `dtype` [tokens, out].

    The matrix is one of three kinds, by the type of `values`:

    - int8 [out, in]: row n is `values[n] * scales[n]`, scales float32 [out];
    - float8_e4m3fn [out, in]: the same. x may be float8_e4m3fn, too, for which libraries have
      products;
    - uint8 [out, in / 2]: groups of g inputs, a power of two from 32 on, with scales float16
      [out, in / g] and zeros uint8 [out, in / g], which are 8 if left out. Byte j of a group holds
      input j in its low and input j + g / 2 in its high half; an input's value is
      `(half - zero) * scale`.

    Sums are float32; where both are float8 they are rounded to `dtype` once more, before scales are
    applied. Raises ValueError for shapes and dtypes that do not fit, and for an unknown
    backend.
    """
    check_matrix(values, scales, zeros, x.shape[1])
    if x.dtype == FLOAT8 and values.dtype != FLOAT8:
        raise ValueError(f"x is {x.dtype} where values are {values.dtype}")
    return choose(backend, BACKENDS)(x, values, scales, zeros, dtype=jnp.dtype(dtype))


def check_matrix(
    values: jax.Array, scales: jax.Array, zeros: jax.Array | None, num_inputs: int
) -> None:
    """Raise ValueError unless these make a matrix of one of the kinds above. Inputs may be axis 1
    of more than two."""
    outputs, _, *rest = values.shape
    if values.dtype == jnp.uint8:
        groups = scales.shape[1] if scales.ndim > 1 else 1
        group = num_inputs // max(groups, 1)
        _check("values", values, (outputs, num_inputs // 2, *rest), jnp.uint8)
        _check("scales", scales, (outputs, groups, *rest), jnp.float16)
        if zeros is not None:
            _check("zeros", zeros, (outputs, groups, *rest), jnp.uint8)
        if group * groups != num_inputs or group < MIN_GROUP or group & (group - 1):
            raise ValueError(f"{groups} groups of {num_inputs} inputs are no power of two each")
    else:
        if values.dtype not in (jnp.int8, FLOAT8):
            raise ValueError(f"values must be int8, float8_e4m3fn or uint8, not {values.dtype}")
        _check("values", values, (outputs, num_inputs, *rest), values.dtype)
        _check("scales", scales, (outputs, *rest), jnp.float32)
        if zeros is not None:
            raise ValueError("only a matrix of 4 bits has zeros")


def _check(name: str, array: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{name} must be {jnp.dtype(dtype)}{list(shape)}, not {array.dtype}{list(array.shape)}"
        )
