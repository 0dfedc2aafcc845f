"""Matrices as quantised files have them: for each value its code and what makes a number of it.

Such an array goes through whatever models do with their tensors, since that only moves values.
Imports no jax: checkpoints are opened where there is none.
"""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Scheme = Literal["int8", "fp8", "int4"]

CODE_TYPES: dict[Scheme, np.dtype[Any]] = {
    "int4": np.dtype([("int4", "u1"), ("zero", "u1"), ("scale", "<f4")]),
    "int8": np.dtype([("int8", "i1"), ("scale", "<f4")]),
    "fp8": np.dtype([("fp8", "u1"), ("scale", "<f4")]),
}
"""The first field, named as the scheme, is the code: half a byte, an integer, or the bits of a
float8_e4m3fn. `int4` stands for (code - zero) * scale, the others for code * scale."""

SHARED = 32
"""Inputs that share zero and scale in any file that is read."""


def scheme_of(values: Any) -> Scheme | None:
    """Of an array of codes; None for plain numbers."""
    return next((name for name, kind in CODE_TYPES.items() if values.dtype == kind), None)


def numbers(codes: NDArray[Any]) -> NDArray[Any]:
    """The codes as integers or float8 numbers."""
    scheme = scheme_of(codes)
    assert scheme is not None
    plain = np.ascontiguousarray(codes[scheme])
    return plain.view(ml_dtypes.float8_e4m3fn) if scheme == "fp8" else plain


def widened(codes: NDArray[Any]) -> NDArray[np.float32]:
    """What the codes stand for."""
    values = numbers(codes).astype(np.float32)
    if scheme_of(codes) == "int4":
        values -= codes["zero"]
    return values * codes["scale"]


class CodeStack:
    """Codes of matrices [in, ...] of one shape, [matrices, in, ...].

    Of what makes numbers of the codes only every SHARED-th input's is kept, which takes a sixth of
    the memory: all experts of a layer have to fit the host's at once.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.numbers: NDArray[Any] = np.empty(shape, numbers(np.empty(0, dtype)).dtype)
        self.shared = np.empty((shape[0], -(-shape[1] // SHARED), *shape[2:]), dtype)
        """Codes of every SHARED-th input."""

    def __setitem__(self, index: int, codes: Any) -> None:
        self.numbers[index] = numbers(codes)
        self.shared[index] = codes[::SHARED]
