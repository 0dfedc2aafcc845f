"""Codes of a quantised file as a matrix on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.quantization.codes import numbers, scheme_of
from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.sharding import placed


def placed_codes(codes: NDArray[Any], target: QuantizedMatrix) -> QuantizedMatrix:
    """The abstract matrix `target` with the values of codes of its shape: nothing is rounded.

    Raises ValueError for codes of another scheme.
    """
    if scheme_of(codes) != target.scheme:
        raise ValueError(f"codes of {scheme_of(codes)} where {target.scheme} was expected")
    flat = codes.reshape(target.size_2d)
    values, zeros = numbers(flat), None
    if target.group is None:
        scales = np.ascontiguousarray(flat["scale"][:, 0])
    else:
        values = packed(values, target.group)
        scales = flat["scale"][:, :: target.group].astype(np.float16)
        if target.zeros is not None:
            zeros = np.ascontiguousarray(flat["zero"][:, :: target.group])
    places = target.shardings()
    parts = jax.tree.map(
        placed, (values, scales, zeros), (places.values, places.scales, places.zeros)
    )
    values, scales, zeros = jax.block_until_ready(parts)
    return dataclasses.replace(target, values=values, scales=scales, zeros=zeros)


def packed(numbers: NDArray[np.uint8], group: int) -> NDArray[np.uint8]:
    """Numbers [out, in] below 16 as `pallas_kernels.quant_matmul` takes them, [out, in / 2]."""
    grouped = numbers.reshape(len(numbers), -1, 2, group // 2)
    both = grouped[:, :, 0] | (grouped[:, :, 1] << np.uint8(4))
    return both.astype(np.uint8).reshape(len(numbers), -1)
