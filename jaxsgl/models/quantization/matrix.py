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
    """[out, in], in the forms that `pallas_kernels.quant_matmul` takes.

    To whoever holds it in place of an array it has the array's shape, of which the first
    `num_outputs` axes are output features.
    """

    values: Any
    """int8 or float8_e4m3fn [out, in], or uint8 [out, in / 2]."""
    scales: Any
    """float32 [out], or float16 [out, groups]."""
    zeros: Any
    """uint8 [out, groups], with 4 bits only; None if all are 8."""
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    num_outputs: int = dataclasses.field(metadata={"static": True})
    scheme: Scheme = dataclasses.field(metadata={"static": True})
    layout: Layout = dataclasses.field(metadata={"static": True})
    axes: tuple[str | None, str | None] = dataclasses.field(metadata={"static": True})
    """Logical axes of out and in."""

    @property
    def size_2d(self) -> tuple[int, int]:
        outputs = math.prod(self.shape[: self.num_outputs])
        return outputs, math.prod(self.shape[self.num_outputs :])

    @property
    def group(self) -> int | None:
        """Inputs per scale; None if all share one."""
        return None if self.scales.ndim == 1 else self.size_2d[1] // self.scales.shape[1]

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
        """Where each part goes, in the place of the part. Inputs are the fastest axis of all."""
        output, inputs = self.axes
        both = self.layout.sharding(output, inputs)
        per_output = self.layout.sharding(output) if self.group is None else both
        zeros = None if self.zeros is None else both
        return dataclasses.replace(self, values=both, scales=per_output, zeros=zeros)


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
    spread = [axis for axis in (*axes[1:num_outputs], *axes[num_outputs + 1 :]) if axis]
    assert not any(layout.spec(axis)[0] for axis in spread), "only a first axis may be spread"
    outputs, inputs = math.prod(shape[:num_outputs]), math.prod(shape[num_outputs:])
    axes_2d = (axes[0], axes[num_outputs])
    values = jax.ShapeDtypeStruct((outputs, inputs), jnp.int8)
    scales = jax.ShapeDtypeStruct((outputs,), jnp.float32)
    zeros = None
    if scheme == "fp8":
        values = values.update(dtype=jnp.float8_e4m3fn)
    elif scheme == "int4":
        num_groups = inputs // group_size(inputs, layout.sharding(axes_2d[1]), max_group)
        values = jax.ShapeDtypeStruct((outputs, inputs // 2), jnp.uint8)
        scales = jax.ShapeDtypeStruct((outputs, num_groups), jnp.float16)
        zeros = scales.update(dtype=jnp.uint8) if with_zeros else None
    return QuantizedMatrix(values, scales, zeros, shape, num_outputs, scheme, layout, axes_2d)


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
