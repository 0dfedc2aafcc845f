"""A safetensors file: its checked header, and its tensors one at a time.

Every length and offset is compared with the size of the file before anything is allocated for it.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.tensor_data import StoredTensor, read_float32, read_plain

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_DIMENSIONS = 8

VALUE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
"""Bytes per value of each type the format knows."""
_WEIGHT_TYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
FLOAT32 = np.dtype(np.float32)


def read_safetensors_header(path: Path) -> dict[str, StoredTensor[str]]:
    """Return the tensors of `path` by name. Raises CheckpointError, which names file and tensor."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(
                    f"{path}: header of {header_bytes} bytes in a file of {file_bytes}"
                )
            header = file.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_header(header, file_bytes, str(path))


def parse_header(header: bytes, file_bytes: int, file: str) -> dict[str, StoredTensor[str]]:
    """Parse the JSON `header` of a file of `file_bytes` bytes.

    The tensors returned lie one behind the other and fill the rest of the file exactly.
    """
    try:
        entries = json.loads(header, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: header is not JSON: {ascii(str(error))[:200]}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: header is not a JSON object")
    entries.pop("__metadata__", None)

    data_start = 8 + len(header)
    tensors = [_parse_entry(name, entry, data_start, file) for name, entry in entries.items()]
    end = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            problem = "overlaps another tensor" if tensor.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{file}: {tensor.name[:200]!a} {problem}")
        end += tensor.num_bytes
        if end > file_bytes:
            raise CheckpointError(
                f"{file}: {tensor.name[:200]!a} ends at byte {end} of a file of {file_bytes}:"
                " is it complete?"
            )
    if end != file_bytes:
        raise CheckpointError(f"{file}: has {file_bytes - end} bytes after its last tensor")
    return {tensor.name: tensor for tensor in tensors}


def check_weight(tensor: StoredTensor[str], file: str) -> None:
    """Raise CheckpointError if the values of `tensor` are not floating-point numbers we read."""
    if tensor.kind not in _WEIGHT_TYPES:
        raise CheckpointError(
            f"{file}: {tensor.name!a} has type {tensor.kind}, which is unsupported"
        )


def type_as_read(tensor: StoredTensor[str], wanted: np.dtype[Any]) -> np.dtype[Any]:
    """The type of what `read_safetensors_tensor` returns."""
    return wanted if _WEIGHT_TYPES[tensor.kind] == wanted else FLOAT32


def read_safetensors_tensor(
    path: Path, tensor: StoredTensor[str], wanted: np.dtype[Any] = FLOAT32
) -> NDArray[Any]:
    """Return the values of a tensor that `check_weight` accepts, in memory of their own: as they
    are if they have the type `wanted`, or else as float32."""
    stored = _WEIGHT_TYPES[tensor.kind]
    if stored == type_as_read(tensor, wanted):
        return read_plain(path, tensor, stored)
    if tensor.kind == "BF16":
        return read_float32(path, tensor, stored.itemsize, _from_bfloat16)
    return read_float32(
        path, tensor, stored.itemsize, lambda raw: raw.view(stored).astype(np.float32)
    )


def read_safetensors_raw(path: Path, tensor: StoredTensor[str]) -> NDArray[Any]:
    """Return int32 values, or single bytes, as they are."""
    dtype = np.dtype("<i4") if tensor.kind == "I32" else np.dtype(np.uint8)
    return read_plain(path, tensor, dtype)


def _from_bfloat16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of a float32."""
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _parse_entry(name: str, entry: Any, data_start: int, file: str) -> StoredTensor[str]:
    where = f"{file}: {name[:200]!a}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in VALUE_BYTES:
        raise CheckpointError(f"{where} has unknown dtype {ascii(kind)[:100]}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where} has shape {ascii(shape)[:100]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where} has data_offsets {ascii(offsets)[:100]}")
    num_bytes = math.prod(shape) * VALUE_BYTES[kind]
    if offsets[1] - offsets[0] != num_bytes:
        raise CheckpointError(
            f"{where} has data_offsets {offsets}, but its shape and dtype need {num_bytes} bytes"
        )
    return StoredTensor(name, tuple(shape), kind, data_start + offsets[0], num_bytes)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return values


def _no_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")
