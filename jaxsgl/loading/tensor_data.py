"""Where a tensor lies in a file, and reading it as float32 a bounded piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError

PIECE_BYTES = 2**20
"""What is read at once, so that reading needs little memory beyond the tensor itself."""


@dataclass(frozen=True, slots=True)
class StoredTensor[Kind]:
    """One tensor of a file. `kind` is the file format's name for the type of its values."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first."""
    kind: Kind
    offset: int
    """From the start of the file, in bytes."""
    num_bytes: int


def part_of[Kind](stack: StoredTensor[Kind], index: int) -> StoredTensor[Kind]:
    """One entry of the outermost dimension of a tensor, whose entries consist of whole blocks."""
    num_bytes = stack.num_bytes // stack.shape[0]
    offset = stack.offset + index * num_bytes
    return StoredTensor(stack.name, stack.shape[1:], stack.kind, offset, num_bytes)


def read_float32[Kind](
    path: Path,
    tensor: StoredTensor[Kind],
    block_bytes: int,
    decode: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return the values of `tensor` as float32; see `read_values`."""
    return read_values(path, tensor, block_bytes, np.dtype(np.float32), decode)


def read_values[Kind](
    path: Path,
    tensor: StoredTensor[Kind],
    block_bytes: int,
    dtype: np.dtype[Any],
    decode: Callable[[NDArray[np.uint8]], NDArray[Any]],
) -> NDArray[Any]:
    """Return the values of `tensor` in its shape, in memory of their own.

    The tensor consists of blocks of `block_bytes`; `decode` turns the bytes of some whole blocks
    into their values. Raises CheckpointError if the file cannot be read or has become shorter than
    the tensor.
    """
    values = np.empty(math.prod(tensor.shape), dtype)
    piece_bytes = max(1, PIECE_BYTES // block_bytes) * block_bytes
    num_read = 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            for start in range(0, tensor.num_bytes, piece_bytes):
                num_bytes = min(piece_bytes, tensor.num_bytes - start)
                raw = np.fromfile(file, np.uint8, num_bytes)
                if len(raw) < num_bytes:
                    raise CheckpointError(f"{path}: {tensor.name!a} is cut short")
                piece = decode(raw)
                values[num_read : num_read + len(piece)] = piece
                num_read += len(piece)
    except OSError as error:
        raise CheckpointError(f"{path}: {tensor.name!a}: {error.strerror}") from None
    return values.reshape(tensor.shape)
