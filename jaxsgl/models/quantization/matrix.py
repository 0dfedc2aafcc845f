"""A quantised matrix, which stands in a model where a plain array would."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxsgl.models.quantization.codes import Scheme
from jaxsgl.models.sharding import Layout

GROUP_SIZES = (128, 64, 32)
"""Inputs that share a scale with 4 bits, the best first: the largest that divides a device's
inputs is taken."""


class QuantizationError(ValueError):
    """One line for a person: a matrix cannot be quantised this way."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedMatrix:
    """[out, in], in the forms that `pallas_kernels.quant_matmul` takes, or those of all experts,
    [experts, in, out], in those of `pallas_kernels.grouped_matmul`. Inputs are axis 1 of both.

    To whoever holds it in place of an array it has the array's shape, of which the first
    `num_outputs` axes are output features. Experts have theirs last, and `num_outputs` is 0.
    """

    values: Any
    """int8 or float8_e4m3fn, or uint8 with half as many inputs."""
    scales: Any
    """float32 without inputs, or float16 with groups in their place."""
    zeros: Any
    """uint8, one for each scale, with 4 bits only; None if all are 8."""
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    num_outputs: int = dataclasses.field(metadata={"static": True})
    scheme: Scheme = dataclasses.field(metadata={"static": True})
    layout: Layout = dataclasses.field(metadata={"static": True})
    axes: tuple[str | None, ...] = dataclasses.field(metadata={"static": True})
    """Logical axes of the matrix."""

    @property
    def size(self) -> tuple[int, ...]:
        """Of the matrix."""
        return tuple(math.prod(self.shape[axes]) for axes in _merged(self.num_outputs))

    @property
    def group(self) -> int | None:
        """Inputs per scale; None if all share one."""
        per_output = self.scales.ndim < self.values.ndim
        return None if per_output else self.size[1] // self.scales.shape[1]

    @property
    def num_bytes(self) -> int:
        """On each device."""
        parts = zip(jax.tree.leaves(self), jax.tree.leaves(self.shardings()), strict=True)
        return sum(
            math.prod(place.shard_shape(part.shape)) * part.dtype.itemsize for part, place in parts
        )

    def __getitem__(self, key: EllipsisType) -> Self:
        """All of it, as `array[...]` is."""
        assert key is ...
        return self

    def shardings(self) -> QuantizedMatrix:
        """Where each part goes, in the place of the part."""
        whole = self.layout.sharding(*self.axes)
        per_output = self.layout.sharding(self.axes[0], *self.axes[2:])
        scales = per_output if self.group is None else whole
        zeros = None if self.zeros is None else whole
        return dataclasses.replace(self, values=whole, scales=scales, zeros=zeros)


def abstract_matrix(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    num_outputs: int,
    scheme: Scheme,
    layout: Layout,
    max_group: int = GROUP_SIZES[0],
    with_zeros: bool = False,
) -> QuantizedMatrix:
    """Without values. `with_zeros` is for 4 bits whose zeros are not all 8. Raises
    QuantizationError if its inputs make no groups on each device."""
    merged = _merged(num_outputs)
    spread = [axis for each in merged for axis in axes[each][1:] if axis]
    assert not any(layout.spec(axis)[0] for axis in spread), "only a first axis may be spread"
    matrix_axes = tuple(axes[each][0] for each in merged)
    first, inputs, *last = (math.prod(shape[each]) for each in merged)
    values = jax.ShapeDtypeStruct((first, inputs, *last), jnp.int8)
    scales = jax.ShapeDtypeStruct((first, *last), jnp.float32)
    zeros = None
    if scheme == "fp8":
        values = values.update(dtype=jnp.float8_e4m3fn)
    elif scheme == "int4":
        num_groups = inputs // group_size(inputs, layout.sharding(matrix_axes[1]), max_group)
        values = jax.ShapeDtypeStruct((first, inputs // 2, *last), jnp.uint8)
        scales = jax.ShapeDtypeStruct((first, num_groups, *last), jnp.float16)
        zeros = scales.update(dtype=jnp.uint8) if with_zeros else None
    return QuantizedMatrix(values, scales, zeros, shape, num_outputs, scheme, layout, matrix_axes)


def _merged(num_outputs: int) -> tuple[slice, ...]:
    """The axes of a weight that are one of its matrix."""
    if num_outputs == 0:
        return slice(1), slice(1, 2), slice(2, None)
    return slice(num_outputs), slice(num_outputs, None)


def group_size(num_inputs: int, sharding: NamedSharding, max_group: int) -> int:
    """Raises QuantizationError if there is none."""
    (mine,) = sharding.shard_shape((num_inputs,))
    for group in GROUP_SIZES:
        if group <= max_group and mine % group == 0:
            return group
    raise QuantizationError(
        f"4 bits need input features in groups of {GROUP_SIZES[-1]} on each device; "
        f"{num_inputs} in {num_inputs // mine} parts are not"
    )
