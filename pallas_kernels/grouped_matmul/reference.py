"""Products of rows with the matrices of their groups in NumPy, group by group, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pallas_kernels.quant_matmul.reference import matrix as stored_matrix


def grouped_matmul(
    x: NDArray[np.floating],
    matrices: NDArray[np.generic],
    group_sizes: NDArray[np.int32],
    scales: NDArray[np.floating] | None = None,
    zeros: NDArray[np.uint8] | None = None,
) -> NDArray[np.float64]:
    """See `api.grouped_matmul`."""
    out = np.zeros((len(x), matrices.shape[2]))
    row = 0
    for matrix, size in zip(widened(matrices, scales, zeros), group_sizes, strict=True):
        mine = slice(row, row + size)
        out[mine] = x[mine].astype(np.float64) @ matrix
        row += size
    return out


def widened(
    matrices: NDArray[np.generic],
    scales: NDArray[np.floating] | None,
    zeros: NDArray[np.uint8] | None,
) -> NDArray[np.float64]:
    """The matrices [groups, in, out] that are stored."""
    if scales is None:
        return matrices.astype(np.float64)
    return stored_matrix(matrices, scales, zeros)
