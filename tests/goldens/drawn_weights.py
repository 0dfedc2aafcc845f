"""Random weights that need no file: the same on every machine for a seed, a name and a shape.

Imports NumPy alone, so that the script that makes goldens can use it beside PyTorch.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def drawn_weight(
    name: str, shape: tuple[int, ...], *, seed: int, norm_mean: float = 1.0
) -> NDArray[np.float32]:
    """Values of a tensor, all of them multiples of 2^-12: half precision holds most exactly.

    Matrices keep the scale of their input; norm scales and biases are far from their usual ones and
    zeros; routers tell their experts apart.
    """
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = draw.standard_normal(shape)
    if "norm" in name:
        values = norm_mean + 0.3 * noise
    elif len(shape) == 1:
        values = 0.3 * noise
    else:
        values = noise * shape[-1] ** -0.5
    if name.endswith(".gate.weight"):
        values *= 3.0
    return (np.round(values * 4096) / 4096).astype(np.float32)


def drawn_tokens(num_tokens: int, vocab_size: int, *, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, vocab_size, num_tokens, np.int32)
