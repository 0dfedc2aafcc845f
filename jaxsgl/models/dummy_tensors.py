"""Random weights made where they are used: billions of values need not pass through the host."""

from __future__ import annotations

import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray


class RepeatedValues(Protocol):
    """The part of a dummy checkpoint that weights are made of."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def drawn(self, name: str) -> NDArray[np.float32]:
        """The values that a tensor repeats from its beginning to its end."""
        ...


class DummyTensors:
    """Implements `TensorSource` with arrays equal to the checkpoint's own.

    Their rows are shared out among the devices of a mesh, where that comes out even: one device has
    no room for what it would hold beside its part of a large model. What passes through a mesh of
    several processes is made on the default device of each.
    """

    def __init__(self, values: RepeatedValues, mesh: Mesh) -> None:
        self._values = values
        self._mesh = None if mesh.is_multi_process else mesh

    def tensor(self, name: str) -> jax.Array:
        drawn, shape = self._values.drawn(name), self._values.shape(name)
        rows, columns = shape[0], math.prod(shape[1:])
        place = None
        if self._mesh is not None and rows % self._mesh.size == 0:
            place = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        # Where each row begins among the values drawn: the product may not fit 32 bits.
        begins = (np.arange(rows, dtype=np.int64) * columns % len(drawn)).astype(np.int32)
        return _repeated(drawn, begins, shape, place)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _repeated(
    drawn: jax.Array, begins: jax.Array, shape: tuple[int, ...], place: NamedSharding | None
) -> jax.Array:
    def rows() -> jax.Array:
        columns = jnp.arange(math.prod(shape[1:]), dtype=jnp.int32)
        return drawn[(begins[:, None] + columns) % len(drawn)].reshape(shape)

    return rows() if place is None else jax.lax.with_sharding_constraint(rows(), place)
