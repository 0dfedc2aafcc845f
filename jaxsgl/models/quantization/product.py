"""Products with quantised matrices, on one device or many."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.typing import DTypeLike

from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.quantization.rounding import float8_rows
from jaxsgl.models.sharding import GATHERED
from pallas_kernels.quant_matmul.api import quant_matmul

MAX_KERNEL_TOKENS = {"int8": 256, "int4": 256, "fp8": 16}
"""Up to so many tokens a GPU uses our own kernel. Beyond, writing the matrix out for the library is
cheap beside the product, and with float8 the library has a product of its own."""


def quantized_product(x: jax.Array, matrix: QuantizedMatrix, dtype: DTypeLike) -> jax.Array:
    """x [tokens, in] times the transposed matrix, [tokens, out] in `dtype`.

    x is multiplied as it is, but that many tokens times fp8 are each rounded to float8, too, with a
    scale of its own: libraries multiply float8 with float8 only, at twice the speed. A few tokens
    take as long as reading the matrix does, so that rounding them would cost and gain nothing.
    """
    few = len(x) <= MAX_KERNEL_TOKENS[matrix.scheme]
    token_scales = None
    if matrix.scheme == "fp8" and not few:
        x, token_scales = float8_rows(x)
    multiply = functools.partial(_local_product, few=few, dtype=dtype)
    parts = (matrix.values, matrix.scales, matrix.zeros)
    if matrix.layout.mesh.size > 1:
        multiply = _spread(multiply, matrix)
    out = multiply(x, *parts)
    return out if token_scales is None else (out * token_scales[:, None]).astype(dtype)


def _local_product(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    few: bool,
    dtype: DTypeLike,
) -> jax.Array:
    by_library = functools.partial(quant_matmul, dtype=dtype, backend="xla")
    if not few:
        return by_library(x, values, scales, zeros)
    by_kernel = functools.partial(quant_matmul, dtype=dtype, backend="triton")
    return jax.lax.platform_dependent(x, values, scales, zeros, cuda=by_kernel, default=by_library)


def _spread(multiply: Any, matrix: QuantizedMatrix) -> Any:
    """On every device of the mesh with its own part: the partitioner cannot look into a kernel."""
    layout = matrix.layout
    output, inputs = (None if axis == GATHERED else axis for axis in matrix.axes)
    gathered = dataclasses.replace(matrix, axes=(output, inputs))
    places = jax.tree.map(lambda sharding: sharding.spec, gathered.shardings())
    (over,) = layout.spec(inputs)

    def local(x: jax.Array, *parts: jax.Array | None) -> jax.Array:
        if over is None:
            return multiply(x, *parts)
        return jax.lax.psum(multiply(x, *parts), over)

    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(layout.spec(None, inputs), places.values, places.scales, places.zeros),
        out_specs=layout.spec(None, output),
        check_vma=False,
    )
