"""A GGUF file as a checkpoint: its configuration, and its tensors under HuggingFace's names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.gguf_config import PERMUTED_ROPE, gguf_model_config
from jaxsgl.loading.gguf_file import check_weight, read_gguf_header, read_gguf_tensor
from jaxsgl.loading.gguf_header import GgufHeader, MetadataValue
from jaxsgl.loading.gguf_names import GgufPlace, gguf_places, needed_shapes
from jaxsgl.loading.model_tensors import check_config, check_tensors
from jaxsgl.loading.rope_factors import llama3_scaling
from jaxsgl.loading.tensor_data import part_of
from jaxsgl.models.model_config import KNOWN_ARCHITECTURES, ModelConfig, RopeScaling

LLAMA3_FACTORS = "rope_freqs.weight"
LONG_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
ROPE_FACTORS = frozenset({LLAMA3_FACTORS, *LONG_FACTORS})


class GgufCheckpoint:
    """Implements `Checkpoint`. Opening reads the header alone."""

    def __init__(
        self, path: Path, known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES
    ) -> None:
        """Raises CheckpointError unless the header is sound and describes a complete model."""
        self._path = path
        self._header = read_gguf_header(path)
        config = gguf_model_config(self._header, path, known_architectures)
        self.config = self._with_rope_factors(config)
        check_config(self.config, str(path))
        self._places = tensor_places(self._header, self.config, str(path))

    @property
    def tokenizer_source(self) -> dict[str, MetadataValue]:
        return self._header.metadata

    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def tensor(self, name: str) -> NDArray[np.float32]:
        place, config = self._places[name], self.config
        if len(place.shapes) == 2:
            return self._kv_b(*(name for name, _ in place.shapes))
        ((in_file, _),) = place.shapes
        tensor = self._header.tensors[in_file]
        if place.expert is not None:
            tensor = part_of(tensor, place.expert)
        values = read_gguf_tensor(self._path, tensor)
        if config.architecture in PERMUTED_ROPE:
            if ".q_proj." in name:
                return _undo_rope_permutation(values, config.num_q_heads)
            if ".k_proj." in name:
                return _undo_rope_permutation(values, config.num_kv_heads)
        if config.norm_offset and name.endswith("norm.weight"):
            values -= np.float32(config.norm_offset)  # llama.cpp keeps the sum.
        return values

    def _kv_b(self, key_name: str, value_name: str) -> NDArray[np.float32]:
        key, value = (
            read_gguf_tensor(self._path, self._header.tensors[name])
            for name in (key_name, value_name)
        )
        merged = np.concatenate([key.swapaxes(1, 2), value], axis=1)
        return merged.reshape(-1, merged.shape[-1])

    def _with_rope_factors(self, config: ModelConfig) -> ModelConfig:
        tensors = self._header.tensors
        if all(name in tensors for name in LONG_FACTORS):
            return replace(config, rope_scaling=self._longrope(config))
        if LLAMA3_FACTORS not in tensors:
            return config
        factors = self._factors(LLAMA3_FACTORS)
        scaling = llama3_scaling(factors, config.rope_theta, config.head_dim)
        if scaling is None:
            raise CheckpointError(
                f"{self._path}: {LLAMA3_FACTORS!a} are not the factors of Llama 3"
            )
        return replace(config, rope_scaling=scaling)

    def _longrope(self, config: ModelConfig) -> RopeScaling:
        prefix = f"{self._header.metadata['general.architecture']}.rope.scaling"
        magnitude = self._header.metadata.get(f"{prefix}.attn_factor", 1.0)
        original = self._header.metadata.get(f"{prefix}.original_context_length")
        if not isinstance(magnitude, float) or not isinstance(original, int) or original < 1:
            raise CheckpointError(
                f"{self._path}: {prefix}.attn_factor or .original_context_length is missing or "
                "no number"
            )
        short, long = (tuple(self._factors(name).tolist()) for name in LONG_FACTORS)
        return RopeScaling(
            "longrope",
            config.context_len / original,
            original_context_len=original,
            magnitude=magnitude,
            short_factors=short,
            long_factors=long,
        )

    def _factors(self, name: str) -> NDArray[np.float32]:
        tensor = self._header.tensors[name]
        check_weight(tensor, str(self._path))
        return read_gguf_tensor(self._path, tensor).reshape(-1)


def tensor_places(header: GgufHeader, config: ModelConfig, file: str) -> dict[str, GgufPlace]:
    """Return HuggingFace name -> place in the file, once every tensor was found in its shape."""
    places = gguf_places(config, header.tensors)
    found = {
        name: tensor.shape for name, tensor in header.tensors.items() if name not in ROPE_FACTORS
    }
    check_tensors(found, needed_shapes(places), file)
    for tensor in header.tensors.values():
        check_weight(tensor, file)
    return places


def _undo_rope_permutation(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Return the rows [num_heads * head_dim, ...] in HuggingFace's order.

    In the file, rows 2i and 2i + 1 of a head are rotated together; in HuggingFace's order, rows i
    and i + head_dim / 2.
    """
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
