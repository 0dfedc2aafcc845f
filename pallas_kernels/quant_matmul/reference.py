"""Products with quantised matrices in NumPy, written from the formats, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quant_matmul(
    x: NDArray[np.floating],
    values: NDArray[np.generic],
    scales: NDArray[np.floating],
    zeros: NDArray[np.uint8] | None,
) -> NDArray[np.float64]:
    """See `api.quant_matmul`."""
    return x.astype(np.float64) @ matrix(values, scales, zeros).T


def matrix(
    values: NDArray[np.generic], scales: NDArray[np.floating], zeros: NDArray[np.uint8] | None
) -> NDArray[np.float64]:
    """The matrix [out, in] that is stored. Inputs may be axis 1 of more than two."""
    if scales.ndim < values.ndim:
        return values.astype(np.float64) * scales.astype(np.float64)[:, None]
    outputs, groups, *rest = scales.shape
    half = values.shape[1] // groups
    stored = np.zeros((outputs, groups * 2 * half, *rest))
    for group in range(groups):
        for place in range(half):
            byte = values[:, group * half + place].astype(np.int64)
            low, high = byte % 16, byte // 16
            scale = scales[:, group].astype(np.float64)
            zero = 8 if zeros is None else zeros[:, group].astype(np.int64)
            stored[:, group * 2 * half + place] = (low - zero) * scale
            stored[:, group * 2 * half + half + place] = (high - zero) * scale
    return stored
