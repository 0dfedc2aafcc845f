"""Codes of a quantised file as a matrix on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.quantization.codes import SHARED, CodeStack, numbers, scheme_of
from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.sharding import placed


def placed_codes(codes: NDArray[Any] | CodeStack, target: QuantizedMatrix) -> QuantizedMatrix:
    """The abstract matrix `target` with the values of codes of its shape: nothing is rounded.

    Raises ValueError for codes of another scheme.
    """
    if scheme_of(codes) != target.scheme:
        raise ValueError(f"codes of {scheme_of(codes)} where {target.scheme} was expected")
    size, group, zeros = target.size, target.group, None
    if isinstance(codes, CodeStack):
        values, every = codes.numbers.reshape(size), SHARED
        shared = codes.shared.reshape(size[0], -1, *size[2:])
    else:
        shared, every = codes.reshape(size), 1
        values = numbers(shared)
    if group is None:
        scales = np.ascontiguousarray(shared["scale"][:, 0])
    else:
        values = packed(values, group)
        shared = shared[:, :: group // every]
        scales = shared["scale"].astype(np.float16)
        if target.zeros is not None:
            zeros = np.ascontiguousarray(shared["zero"])
    places = target.shardings()
    parts = jax.tree.map(
        placed, (values, scales, zeros), (places.values, places.scales, places.zeros)
    )
    values, scales, zeros = jax.block_until_ready(parts)
    return dataclasses.replace(target, values=values, scales=scales, zeros=zeros)


def packed(numbers: NDArray[np.uint8], group: int) -> NDArray[np.uint8]:
    """Numbers below 16 of a matrix, whose inputs are axis 1, as the kernels take them: two in a
    byte."""
    first, inputs, *last = numbers.shape
    grouped = numbers.reshape(first, inputs // group, 2, group // 2, *last)
    both = grouped[:, :, 1] << np.uint8(4)
    both |= grouped[:, :, 0]
    return both.reshape(first, inputs // 2, *last)
