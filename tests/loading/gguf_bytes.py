"""Writes GGUF files byte by byte, so that tests can also write wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.model_config import ModelConfig

ALIGNMENT = 32
UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 0, 4, 5, 6, 7, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def value_entry(key: str, value: Any) -> bytes:
    """The entry that converters write for a Python value."""
    match value:
        case bool():
            return entry(key, BOOL, struct.pack("<?", value))
        case int():
            return entry(key, UINT32, struct.pack("<I", value))
        case float():
            return entry(key, FLOAT32, struct.pack("<f", value))
        case str():
            return entry(key, STRING, text(value))
        case [str(), *_]:
            return entry(key, ARRAY, array(STRING, len(value), b"".join(map(text, value))))
        case [int(), *_]:
            packed = struct.pack(f"<{len(value)}i", *value)
            return entry(key, ARRAY, array(INT32, len(value), packed))
    raise TypeError(key)


def tensor_info(name: str | bytes, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """`shape` outermost first, as NumPy has it."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def file_bytes(
    entries: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
) -> bytes:
    """A whole file; what it says about itself can be made to differ from what follows."""
    header = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if num_tensors is None else num_tensors,
        len(entries) if num_keys is None else num_keys,
    )
    header += b"".join(entries) + b"".join(infos)
    return header + bytes(-len(header) % ALIGNMENT) + data


def model_entries(config: ModelConfig) -> dict[str, Any]:
    """Metadata as llama.cpp's converter writes it."""
    entries: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "block_count": config.num_layers,
        "context_length": config.context_len,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.mlp_size,
        "attention.head_count": config.num_q_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    prefixed = {f"{config.architecture}.{key}": value for key, value in entries.items()}
    return {"general.architecture": config.architecture} | prefixed


@dataclass(frozen=True)
class Packed:
    """A tensor in some type of the format."""

    raw: NDArray[np.uint8]
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType


def model_file(metadata: dict[str, Any], tensors: dict[str, NDArray[np.float32] | Packed]) -> bytes:
    """A file with these values; plain arrays are stored as F32."""
    infos: list[bytes] = []
    data = b""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Packed):
            raw = np.ascontiguousarray(tensor, np.float32).reshape(-1).view(np.uint8)
            tensor = Packed(raw, tensor.shape, gguf.GGMLQuantizationType.F32)
        infos.append(tensor_info(name, tensor.shape, tensor.kind, len(data)))
        raw = tensor.raw.tobytes()
        data += raw + bytes(-len(raw) % ALIGNMENT)
    return file_bytes([value_entry(*item) for item in metadata.items()], infos, data)
