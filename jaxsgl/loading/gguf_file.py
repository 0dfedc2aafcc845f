"""A GGUF file: its checked header, and its tensors dequantised one at a time."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.gguf_header import GgufHeader, GgufTensor, parse_header
from jaxsgl.loading.tensor_data import read_float32

NOT_WEIGHTS = frozenset(
    GGMLQuantizationType[name]
    for name in ("Q8_1", "Q8_K", "Q1_0", "I8", "I16", "I32", "I64", "F64")
)
"""Types that a file may hold but the `gguf` package does not dequantise."""


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of `path`. Raises CheckpointError."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_header(data, str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # An empty file cannot be mapped.
        raise CheckpointError(f"{path}: is empty") from None


def check_weight(tensor: GgufTensor, file: str) -> None:
    """Raise CheckpointError if the values of `tensor` have a type that cannot be dequantised."""
    if tensor.kind in NOT_WEIGHTS:
        raise CheckpointError(
            f"{file}: {tensor.name!a} has type {tensor.kind.name}, not a weight's"
        )


def read_gguf_tensor(path: Path, tensor: GgufTensor) -> NDArray[np.float32]:
    """Return the values of a tensor that `check_weight` accepts, in memory of their own.

    Raises CheckpointError if the file cannot be read or has become shorter.
    """
    _, block_bytes = GGML_QUANT_SIZES[tensor.kind]

    def decode(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
        # The package decodes in groups of rows; as a single row, a piece takes a single call.
        return dequantize(raw.reshape(1, -1), tensor.kind).reshape(-1)

    return read_float32(path, tensor, block_bytes, decode)
