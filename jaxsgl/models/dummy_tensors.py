"""Random weights made where they are used: billions of values need not pass through the host."""

from __future__ import annotations

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


class RepeatedValues(Protocol):
    """The part of a dummy checkpoint that weights are made of."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def drawn(self, name: str) -> NDArray[np.float32]:
        """The values that a tensor repeats from its beginning to its end."""
        ...


class DummyTensors:
    """Implements `TensorSource` with arrays on the default device, equal to the checkpoint's
    own."""

    def __init__(self, values: RepeatedValues) -> None:
        self._values = values

    def tensor(self, name: str) -> jax.Array:
        return _repeated(self._values.drawn(name), self._values.shape(name))


@functools.partial(jax.jit, static_argnames="shape")
def _repeated(drawn: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.resize(drawn, shape)
