"""Quantised matrices of safetensors files as codes: AWQ, GPTQ and compressed-tensors.

- AWQ (github.com/casper-hansen/AutoAWQ, "gemm"): `qweight` int32 [in, out / 8], `qzeros` int32
  [groups, out / 8], `scales` [groups, out]. Half byte i of a word, from the lowest, is column
  AWQ_ORDER[i] of its eight.
- GPTQ (github.com/AutoGPTQ/AutoGPTQ): `qweight` int32 [in / 8, out], half byte i being row i of its
  eight; `qzeros` int32 [groups, out / 8] in plain order, one less than the zero in all but the
  second version; `g_idx` int32 [in], the group of each input.
- compressed-tensors (github.com/vllm-project/compressed-tensors): `weight` int8 or float8_e4m3fn
  [out, in] and `weight_scale`, one for each output or for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.quantization_config import StoredQuantization
from jaxsgl.loading.safetensors_file import (
    check_weight,
    read_safetensors_raw,
    read_safetensors_tensor,
)
from jaxsgl.loading.tensor_data import StoredTensor
from jaxsgl.models.quantization.codes import CODE_TYPES

Found = dict[str, tuple[Path, StoredTensor[str]]]
"""Tensors by name, each with its file."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_IGNORED = (".input_scale", ".k_scale", ".v_scale", ".output_scale")
"""Scales of activations and keys: ours are found while computing."""


class PackedMatrix:
    """One quantised matrix of a checkpoint."""

    def __init__(self, name: str, parts: Found, how: StoredQuantization) -> None:
        """`parts` by the last word of their names. Raises CheckpointError, naming the tensor, if
        they do not fit together."""
        self._name = name
        self._parts = parts
        self._how = how
        self.shape = self._four_bit_shape() if how.scheme == "int4" else self._eight_bit_shape()

    def codes(self) -> NDArray[Any]:
        """[out, in], see `models.quantization.codes`."""
        codes = np.empty(self.shape, CODE_TYPES[self._how.scheme])
        if self._how.scheme != "int4":
            codes[self._how.scheme] = self._read("weight").view(codes.dtype[0])
            codes["scale"] = self._scales().reshape(-1, 1)
            return codes
        inputs = self.shape[1]
        words, zeros = self._read("qweight"), self._read("qzeros")
        if self._how.method == "awq":
            codes["int4"] = _half_bytes(words, AWQ_ORDER).T
            order = AWQ_ORDER
        else:
            self._check_order()
            codes["int4"] = _half_bytes(words.T, range(8))
            order = range(8)
        group = inputs // len(zeros)
        offset = self._how.zero_offset
        codes["zero"] = np.repeat(_half_bytes(zeros, order).T + np.uint8(offset), group, axis=1)
        codes["scale"] = np.repeat(self._scales().T, group, axis=1)
        return codes

    def _four_bit_shape(self) -> tuple[int, int]:
        rows, columns = self._shape("qweight")
        awq = self._how.method == "awq"
        outputs, inputs = (columns * 8, rows) if awq else (columns, rows * 8)
        size = inputs if self._how.group_size == -1 else self._how.group_size
        if size == 0 or inputs % size or outputs % 8:
            raise self._error("qweight", f"is no whole number of groups of {size}")
        self._check("qweight", (rows, columns), "I32")
        self._check("qzeros", (inputs // size, outputs // 8), "I32")
        self._check("scales", (inputs // size, outputs))
        if "g_idx" in self._parts:
            self._check("g_idx", (inputs,), "I32")
        return outputs, inputs

    def _eight_bit_shape(self) -> tuple[int, int]:
        outputs, inputs = self._shape("weight")
        kind = "I8" if self._how.scheme == "int8" else "F8_E4M3"
        self._check("weight", (outputs, inputs), kind)
        shape = self._part("weight_scale").shape
        if shape not in ((outputs, 1), (outputs,), (1,), ()):
            raise self._error("weight_scale", f"has shape {shape}")
        self._check("weight_scale", shape)
        return outputs, inputs

    def _check_order(self) -> None:
        """Groups that were made in another order of the inputs would need it undone in every
        product."""
        if "g_idx" in self._parts:
            inputs = self.shape[1]
            size = inputs if self._how.group_size == -1 else self._how.group_size
            if not np.array_equal(self._read("g_idx"), np.arange(inputs) // size):
                raise self._error("g_idx", "reorders inputs (desc_act), which is unsupported")

    def _part(self, key: str) -> StoredTensor[str]:
        if key not in self._parts:
            raise CheckpointError(f"tensor {self._name + '.' + key!a} is missing")
        return self._parts[key][1]

    def _shape(self, key: str) -> tuple[int, int]:
        shape = self._part(key).shape
        if len(shape) != 2:
            raise self._error(key, f"has shape {shape}")
        return shape[0], shape[1]

    def _check(self, key: str, shape: tuple[int, ...], kind: str | None = None) -> None:
        """`kind` None is a floating-point type."""
        part = self._part(key)
        if part.shape != shape:
            raise self._error(key, f"has shape {part.shape}, not {shape}")
        if kind is None:
            check_weight(part, str(self._parts[key][0]))
        elif part.kind != kind:
            raise self._error(key, f"has type {part.kind}, not {kind}")

    def _error(self, key: str, why: str) -> CheckpointError:
        path, part = self._parts[key]
        return CheckpointError(f"{path}: {part.name!a} {why}")

    def _read(self, key: str) -> NDArray[Any]:
        path, part = self._parts[key]
        return read_safetensors_raw(path, part)

    def _scales(self) -> NDArray[np.float32]:
        key = "scales" if self._how.scheme == "int4" else "weight_scale"
        return read_safetensors_tensor(*self._parts[key])


def _half_bytes(words: NDArray[np.int32], order: Any) -> NDArray[np.uint8]:
    """[rows, 8 * columns] of words [rows, columns]; half byte i, from the lowest, goes to place
    order[i] of its eight."""
    rows, columns = words.shape
    halves = np.empty((rows, columns, 8), np.uint8)
    unsigned = words.view(np.uint32)
    for index, place in enumerate(order):
        halves[:, :, place] = (unsigned >> np.uint32(4 * index)) & np.uint32(15)
    return halves.reshape(rows, columns * 8)


def take_packed(found: Found, how: StoredQuantization) -> Mapping[str, PackedMatrix]:
    """Take the quantised matrices out of `found`; by the name that each would have otherwise."""
    mark = ".qweight" if how.scheme == "int4" else ".weight_scale"
    parts = (
        ("qweight", "qzeros", "scales", "g_idx")
        if how.scheme == "int4"
        else ("weight", "weight_scale")
    )
    packed: dict[str, PackedMatrix] = {}
    for name in [name for name in found if name.endswith(mark)]:
        stem = name.removesuffix(mark)
        mine = {part: found.pop(f"{stem}.{part}") for part in parts if f"{stem}.{part}" in found}
        packed[f"{stem}.weight"] = PackedMatrix(stem, mine, how)
    for name in [name for name in found if name.endswith(_IGNORED)]:
        del found[name]
    return packed
