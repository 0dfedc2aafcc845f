"""Products of rows with the matrices of their groups in NumPy, row by row, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grouped_matmul(
    x: NDArray[np.floating], matrices: NDArray[np.floating], group_sizes: NDArray[np.int32]
) -> NDArray[np.float64]:
    """See `api.grouped_matmul`."""
    out = np.zeros((len(x), matrices.shape[2]))
    row = 0
    for matrix, size in zip(matrices.astype(np.float64), group_sizes, strict=True):
        for _ in range(size):
            out[row] = x[row].astype(np.float64) @ matrix
            row += 1
    return out
