"""A HuggingFace folder as a checkpoint: config.json and one or more safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.hf_config import read_hf_config
from jaxsgl.loading.json_file import read_json_object
from jaxsgl.loading.model_tensors import check_tensors, expected_shapes
from jaxsgl.loading.packed_tensors import PackedMatrix, take_packed
from jaxsgl.loading.quantization_config import read_quantization
from jaxsgl.loading.safetensors_file import (
    FLOAT32,
    check_weight,
    read_safetensors_header,
    read_safetensors_tensor,
    type_as_read,
)
from jaxsgl.loading.tensor_data import StoredTensor
from jaxsgl.models.model_config import KNOWN_ARCHITECTURES, ModelConfig
from jaxsgl.models.quantization.codes import widened

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EXPERTS = ".experts."
"""In the names of their matrices."""


class SafetensorsCheckpoint:
    """Implements `Checkpoint`. Opening reads headers alone."""

    def __init__(
        self, folder: Path, name: str, known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES
    ) -> None:
        """Raises CheckpointError unless the files are sound and hold a known, complete model."""
        self.config = read_hf_config(folder, name, known_architectures)
        self.tokenizer_source = folder
        file = folder / "config.json"
        self.quantization = read_quantization(read_json_object(file), str(file))
        """How matrices are stored; None if they are plain."""
        self._tensors = _find_tensors(folder)
        self._packed: Mapping[str, PackedMatrix] = {}
        if self.quantization is not None:
            self._packed = take_packed(self._tensors, self.quantization)
            self.quantization = replace(
                self.quantization,
                has_head=HEAD in self._packed,
                has_experts=not any(EXPERTS in name for name in self._tensors),
            )
        for ignored in _ignored_names(self._tensors, self.config):
            del self._tensors[ignored]
        check_tensors(
            {name: tensor.shape for name, (_, tensor) in self._tensors.items()}
            | {name: matrix.shape for name, matrix in self._packed.items()},
            expected_shapes(self.config),
            str(folder),
        )
        for path, tensor in self._tensors.values():
            check_weight(tensor, str(path))

    def names(self) -> tuple[str, ...]:
        return tuple(expected_shapes(self.config))

    def tensor(self, name: str, dtype: np.dtype[Any] = FLOAT32) -> NDArray[Any]:
        """A tensor in `dtype` if that is its type in the file, or else in float32."""
        if name in self._packed:
            return widened(self._packed[name].codes())
        path, tensor = self._tensors[name]
        return read_safetensors_tensor(path, tensor, dtype)

    def value_bytes(self, dtype: np.dtype[Any]) -> int:
        """What a value of a matrix takes at most, as `tensor` or `stored` returns it. Vectors take
        next to nothing, in whatever type they are."""
        if self._packed:
            return FLOAT32.itemsize
        matrices = [tensor for _, tensor in self._tensors.values() if len(tensor.shape) > 1]
        return max(type_as_read(each, dtype).itemsize for each in matrices)

    def stored(self, name: str, dtype: np.dtype[Any] = FLOAT32) -> NDArray[Any]:
        """A tensor as `tensor` returns it, or the codes of a quantised matrix. Those of experts are
        of one kind."""
        assert self.quantization is not None
        if name in self._packed and (EXPERTS not in name or self.quantization.has_experts):
            return self._packed[name].codes()
        return self.tensor(name, dtype)


def _find_tensors(folder: Path) -> dict[str, tuple[Path, StoredTensor[str]]]:
    """Return name -> (file, tensor) over all files of the checkpoint."""
    if not (folder / INDEX_FILE).exists():
        path = _single_file(folder)
        return {name: (path, tensor) for name, tensor in read_safetensors_header(path).items()}
    weight_map = _read_index(folder / INDEX_FILE)
    found: dict[str, tuple[Path, StoredTensor[str]]] = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        for name, tensor in read_safetensors_header(path).items():
            if name in found:
                raise CheckpointError(f"{path}: {name[:200]!a} is also in {found[name][0]}")
            if weight_map.get(name) != shard:
                raise CheckpointError(f"{path}: {name[:200]!a} is not there by {INDEX_FILE}")
            found[name] = (path, tensor)
    for name, shard in weight_map.items():
        if name not in found:
            raise CheckpointError(f"{folder / shard}: tensor {name[:200]!a} is missing")
    return found


def _single_file(folder: Path) -> Path:
    if (folder / SINGLE_FILE).exists():
        return folder / SINGLE_FILE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder}: has neither {INDEX_FILE} nor {SINGLE_FILE}, and {len(files)} other"
            " .safetensors files"
        )
    return files[0]


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map")
    for name, shard in weight_map.items():
        # A name of a file in this folder and nothing else: no separators, no way out.
        if not (isinstance(shard, str) and shard.endswith(".safetensors") and "/" not in shard):
            raise CheckpointError(
                f"{path}: {name[:200]!a} is in {ascii(shard)[:200]}, no file here"
            )
    return weight_map


def _ignored_names(
    found: dict[str, tuple[Path, StoredTensor[str]]], config: ModelConfig
) -> list[str]:
    """Return what some tools write and no model needs: the tied head again, rotary tables."""
    return [
        name
        for name in found
        if name.endswith(".rotary_emb.inv_freq")
        or (name == "lm_head.weight" and config.tie_embeddings)
    ]
