"""Reads the header of a GGUF file, believing nothing it says until it was checked against the file.

Every length and offset is compared with the size of the file before anything is allocated for it,
so a header that lies costs no memory. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.tensor_data import StoredTensor

MAX_HEADER_BYTES = 64 * 2**20
"""Longest header that is read. The largest known vocabulary (262,144 tokens) takes 12 MiB."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 2**16 - 1
DEFAULT_ALIGNMENT = 32

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_NUMBER_TYPES: dict[int, np.dtype] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
# The least that an entry can take: a name's length, then for a tensor the number of dimensions, one
# dimension, the type and the offset; for a key the type and one byte of value.
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_MIN_KEY_BYTES = 8 + 4 + 1

MetadataValue = int | float | bool | str | list[str] | NDArray[np.generic]


type GgufTensor = StoredTensor[GGMLQuantizationType]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    metadata: dict[str, MetadataValue]
    """Arrays of numbers and booleans are NumPy arrays, arrays of strings are lists."""
    tensors: dict[str, GgufTensor]
    """In the order of the file. None overlaps another or reaches beyond the end of the file."""


def parse_header(data: bytes | mmap.mmap, file: str) -> GgufHeader:
    """Parse the header of the file whose whole content is `data`.

    Raises CheckpointError, which names `file` and the key or tensor at fault.
    """
    cursor = _Cursor(data, file)
    if cursor.take(len(MAGIC), "magic") != MAGIC:
        raise cursor.error("magic", "is not GGUF's: this is no GGUF file")
    version = cursor.uint32("version")
    if version not in VERSIONS:
        raise cursor.error("version", f"{version} is not one of {VERSIONS} (little-endian)")
    num_tensors = cursor.count("number of tensors", _MIN_TENSOR_BYTES)
    num_keys = cursor.count("number of keys", _MIN_KEY_BYTES)

    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_keys):
        key = cursor.name("name of a key")
        if key in metadata:
            raise cursor.error(key, "is given twice")
        metadata[key] = _parse_value(cursor, key)
    tensors = [_parse_tensor(cursor) for _ in range(num_tensors)]
    return GgufHeader(metadata, _place_tensors(cursor, tensors, _alignment(cursor, metadata)))


class _Cursor:
    """A position in the header that never leaves it."""

    def __init__(self, data: bytes | mmap.mmap, file: str) -> None:
        self.data = data
        self.file = file
        self.limit = min(len(data), MAX_HEADER_BYTES)
        self.position = 0

    def error(self, what: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {what[:200]!a} {why}")

    def take(self, num_bytes: int, what: str) -> bytes:
        end = self.position + num_bytes
        if end > self.limit:
            raise self.error(what, f"needs {num_bytes} bytes, beyond the end of the header")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def uint32(self, what: str) -> int:
        return _UINT32.unpack(self.take(4, what))[0]

    def uint64(self, what: str) -> int:
        return _UINT64.unpack(self.take(8, what))[0]

    def count(self, what: str, min_item_bytes: int) -> int:
        """Read how many items follow, each of at least `min_item_bytes`."""
        count = self.uint64(what)
        if count * min_item_bytes > self.limit - self.position:
            raise self.error(what, f"is {count}, more than the header can hold")
        return count

    def text(self, what: str) -> str:
        return self._decode(self.take(self.uint64(what), what), what)

    def name(self, what: str) -> str:
        length = self.uint64(what)
        if not 0 < length <= MAX_NAME_BYTES:
            raise self.error(what, f"has {length} bytes instead of 1 to {MAX_NAME_BYTES}")
        return self._decode(self.take(length, what), what)

    def texts(self, count: int, what: str) -> list[str]:
        """Read `count` strings. Written out, because vocabularies have hundreds of thousands."""
        data, limit, position = self.data, self.limit, self.position
        texts: list[str] = []
        for _ in range(count):
            start = position + 8
            if start > limit:
                raise self.error(what, f"ends after {len(texts)} of {count} strings")
            position = start + _UINT64.unpack_from(data, start - 8)[0]
            if position > limit:
                raise self.error(what, f"has a string, number {len(texts)}, beyond the header")
            try:
                texts.append(data[start:position].decode())
            except UnicodeDecodeError:
                raise self.error(what, f"has a string, number {len(texts)}, not in UTF-8") from None
        self.position = position
        return texts

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(what, "is not UTF-8") from None


def _parse_value(cursor: _Cursor, key: str) -> MetadataValue:
    kind = cursor.uint32(key)
    if kind == _STRING:
        return cursor.text(key)
    if kind != _ARRAY:
        return _parse_numbers(cursor, key, kind, 1)[0].item()
    item_kind = cursor.uint32(key)
    if item_kind == _ARRAY:
        raise cursor.error(key, "is an array of arrays, which no model needs")
    if item_kind == _STRING:
        return cursor.texts(cursor.count(key, 8), key)
    return _parse_numbers(cursor, key, item_kind, cursor.count(key, 1))


def _parse_numbers(cursor: _Cursor, key: str, kind: int, count: int) -> NDArray[np.generic]:
    if kind == _BOOL:
        values = np.frombuffer(cursor.take(count, key), np.uint8)
        if count and values.max() > 1:
            raise cursor.error(key, "has a boolean that is neither 0 nor 1")
        return values.view(np.bool_)
    dtype = _NUMBER_TYPES.get(kind)
    if dtype is None:
        raise cursor.error(key, f"has unknown value type {kind}")
    return np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype)


def _parse_tensor(cursor: _Cursor) -> GgufTensor:
    """Read one entry; its offset still counts from the start of the data section."""
    name = cursor.name("name of a tensor")
    num_dimensions = cursor.uint32(name)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.error(
            name, f"has {num_dimensions} dimensions instead of 1 to {MAX_DIMENSIONS}"
        )
    shape = tuple(cursor.uint64(name) for _ in range(num_dimensions))[::-1]
    if 0 in shape:
        raise cursor.error(name, f"has shape {shape}: no values")
    kind_id = cursor.uint32(name)
    try:
        kind = GGMLQuantizationType(kind_id)
    except ValueError:
        raise cursor.error(name, f"has unknown quantisation type {kind_id}") from None
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block_len:
        raise cursor.error(
            name, f"has rows of {shape[-1]} values, no multiple of the {block_len} of {kind.name}"
        )
    num_bytes = math.prod(shape) // block_len * block_bytes
    return StoredTensor(name, shape, kind, cursor.uint64(name), num_bytes)


def _alignment(cursor: _Cursor, metadata: dict[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.error("general.alignment", f"is {alignment!s:.40}, not a power of two")
    return alignment


def _place_tensors(
    cursor: _Cursor, entries: list[GgufTensor], alignment: int
) -> dict[str, GgufTensor]:
    """Return the tensors with offsets from the start of the file, having checked them all."""
    data_start = -(-cursor.position // alignment) * alignment
    file_bytes = len(cursor.data)
    tensors: dict[str, GgufTensor] = {}
    for entry in entries:
        if entry.name in tensors:
            raise cursor.error(entry.name, "is given twice")
        if entry.offset % alignment:
            raise cursor.error(entry.name, f"has offset {entry.offset}, not aligned to {alignment}")
        offset = data_start + entry.offset
        if offset + entry.num_bytes > file_bytes:
            raise cursor.error(
                entry.name,
                f"ends at byte {offset + entry.num_bytes} of a file of {file_bytes}: incomplete?",
            )
        tensors[entry.name] = StoredTensor(
            entry.name, entry.shape, entry.kind, offset, entry.num_bytes
        )
    end, last = data_start, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise cursor.error(tensor.name, f"overlaps {last[:200]!a}")
        end, last = tensor.offset + tensor.num_bytes, tensor.name
    return tensors
