"""Random weights in the shapes of a config.json, for benchmarks and tests without a download."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.hf_config import read_hf_config
from jaxsgl.loading.model_tensors import expected_shapes
from jaxsgl.models.model_config import KNOWN_ARCHITECTURES

WEIGHT_STD = 0.02
NUM_DRAWN = 100_003
"""Values drawn per tensor, then repeated: billions of draws would take minutes. A prime, so that
the rows of a matrix differ."""


class DummyCheckpoint:
    """Implements `Checkpoint`. Equal seeds give equal weights, whatever the order of asking."""

    def __init__(
        self,
        folder: Path,
        name: str,
        seed: int,
        known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES,
    ) -> None:
        self.config = read_hf_config(folder, name, known_architectures)
        self.tokenizer_source = folder if (folder / "tokenizer.json").exists() else None
        self._shapes = expected_shapes(self.config)
        self._seed = seed

    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def drawn(self, name: str) -> NDArray[np.float32]:
        """The values that a tensor repeats from its beginning to its end."""
        if "norm" in name:
            return np.full(1, 1.0 - self.config.norm_offset, np.float32)
        draw = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        num_drawn = min(math.prod(self._shapes[name]), NUM_DRAWN)
        return draw.standard_normal(num_drawn, np.float32) * np.float32(WEIGHT_STD)

    def tensor(self, name: str) -> NDArray[np.float32]:
        drawn, num_values = self.drawn(name), math.prod(self._shapes[name])
        values = np.empty(num_values, np.float32)
        for start in range(0, num_values, len(drawn)):
            values[start : start + len(drawn)] = drawn[: num_values - start]
        return values.reshape(self._shapes[name])
