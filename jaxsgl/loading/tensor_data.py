"""Where a tensor lies in a file, and reading it: as it is, or as float32 a bounded piece at a time.

One stream of reads does not keep a fast disk busy, nor one thread that widens: a large tensor is
read in several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError

PIECE_BYTES = 2**20
"""What all streams together decode at once, so that reading needs little memory beyond the tensor
itself."""
NUM_STREAMS = 4
STREAM_BYTES = 2**23
"""Least that is worth a stream, and a thread, of its own."""


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


def read_plain[Kind](path: Path, tensor: StoredTensor[Kind], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values of `tensor`, which are of `dtype` in the file, in memory of their own.

    Raises CheckpointError if the file cannot be read or has become shorter than the tensor.
    """
    values = np.empty(math.prod(tensor.shape), dtype)
    raw = values.view(np.uint8)

    def read(file: FileIO, start: int, end: int) -> None:
        _fill(raw[start:end], file)

    _in_streams(path, tensor, dtype.itemsize, read)
    return values.reshape(tensor.shape)


def read_float32[Kind](
    path: Path,
    tensor: StoredTensor[Kind],
    block_bytes: int,
    decode: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return the values of `tensor` as float32; as `read_plain` otherwise.

    The tensor consists of blocks of `block_bytes`; `decode` turns the bytes of some whole blocks
    into their values, in several threads at once.
    """
    values = np.empty(math.prod(tensor.shape), np.float32)
    block_values = len(values) * block_bytes // max(1, tensor.num_bytes)
    piece_bytes = max(1, PIECE_BYTES // NUM_STREAMS // block_bytes) * block_bytes

    def read(file: FileIO, start: int, end: int) -> None:
        piece = np.empty(piece_bytes, np.uint8)
        for at in range(start, end, piece_bytes):
            raw = piece[: end - at]
            _fill(raw, file)
            decoded = decode(raw)
            first = at // block_bytes * block_values
            values[first : first + len(decoded)] = decoded

    _in_streams(path, tensor, block_bytes, read)
    return values.reshape(tensor.shape)


class _CutShort(Exception):
    """The file ends before the tensor."""


def _fill(raw: NDArray[np.uint8], file: FileIO) -> None:
    num_read = 0
    while num_read < len(raw):
        num_more = file.readinto(raw[num_read:].data)
        if not num_more:
            raise _CutShort
        num_read += num_more


def _in_streams[Kind](
    path: Path,
    tensor: StoredTensor[Kind],
    block_bytes: int,
    read: Callable[[FileIO, int, int], None],
) -> None:
    """Call `read` for the bytes of `tensor` from start to end, whole blocks, until all are read;
    the file stands at start. Large tensors are read by several threads, which end with this
    call."""

    def read_part(start: int) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(tensor.offset + start)
            read(file, start, min(start + part_bytes, tensor.num_bytes))

    least_bytes = max(STREAM_BYTES, -(-tensor.num_bytes // NUM_STREAMS))
    part_bytes = -(-least_bytes // block_bytes) * block_bytes
    starts = range(0, tensor.num_bytes, part_bytes)
    try:
        if len(starts) <= 1:
            for start in starts:
                read_part(start)
            return
        with ThreadPoolExecutor(len(starts), "stream") as pool:
            list(pool.map(read_part, starts))
    except _CutShort:
        raise CheckpointError(f"{path}: {tensor.name!a} is cut short") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {tensor.name!a}: {error.strerror}") from None
