"""Many small int32 arrays in one vector, so that a step costs one transfer instead of ten."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import numpy as np
from numpy.typing import NDArray


class PackedInts:
    """Named int32 arrays of fixed shapes, laid end to end. The same object packs and unpacks."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)
        self.size = sum(math.prod(shape) for shape in self._shapes.values())

    def empty(self) -> tuple[NDArray[np.int32], dict[str, NDArray[np.int32]]]:
        """A vector of zeros, and a writable view of it under each name."""
        vector = np.zeros(self.size, np.int32)
        return vector, self.views(vector)

    def views(self, vector: NDArray[np.int32]) -> dict[str, NDArray[np.int32]]:
        """Writable views of a vector, by name."""
        return self._split(vector)

    def unpack(self, vector: jax.Array) -> dict[str, jax.Array]:
        """The arrays by name, inside a compiled program."""
        return self._split(vector)

    def _split[Array: (NDArray[np.int32], jax.Array)](self, vector: Array) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        start = 0
        for name, shape in self._shapes.items():
            stop = start + math.prod(shape)
            arrays[name] = vector[start:stop].reshape(shape)
            start = stop
        return arrays
