"""Tiny models in the formats of quantised checkpoints, and what their matrices stand for, worked
out value by value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.loading.tiny_models import TinyModel, tiny_model

GROUP = 32
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of each half byte of a word, the lowest first."""
Tensors = dict[str, NDArray[Any]]
Store = Callable[[str, tuple[int, int], np.random.Generator], tuple[Tensors, NDArray[Any]]]
"""From a name without its ending and a shape [out, in] to tensors of a file, and the matrix."""

SETTINGS: dict[str, dict[str, Any]] = {
    "awq": {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"
    },
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
    "gptq_v2": {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"
    },
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "weights": {
                    "num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True
                }
            }
        },
    },
    "fp8": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "weights": {
                    "num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True
                }
            }
        },
    },
}  # fmt: skip


def write_quantized(
    folder: Path,
    kind: str,
    seed: int = 0,
    model: TinyModel | None = None,
    is_plain: Callable[[str], bool] = lambda name: False,
    **settings: Any,
) -> Tensors:
    """Write a folder whose layers' matrices are random ones of that kind; return what they are.
    Those that `is_plain` names stay the model's own."""
    model = model or tiny_model("tiny_llama")
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    matrices: Tensors = {}
    for name, value in model.weights.items():
        if name.endswith("_proj.weight") and not is_plain(name):
            stem = name.removesuffix(".weight")
            stored, matrices[name] = STORES[kind](stem, value.shape, rng)
            tensors |= stored
        else:
            tensors[name] = value
    save(folder, model, tensors, SETTINGS[kind] | settings)
    return matrices


def save(folder: Path, model: TinyModel, tensors: Tensors, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = model.raw_config | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")


def _words(numbers: NDArray[np.integer], columns: tuple[int, ...]) -> NDArray[np.int32]:
    """Half bytes [rows, 8 * n] in words [rows, n]."""
    rows, num = numbers.shape
    words = np.zeros((rows, num // 8), np.uint32)
    for row in range(rows):
        for word in range(num // 8):
            for index, column in enumerate(columns):
                words[row, word] |= int(numbers[row, 8 * word + column]) << 4 * index
    return words.view(np.int32)


def _four_bits(
    shape: tuple[int, int], rng: np.random.Generator, max_zero: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Codes [in, out], zeros and scales [groups, out], and the matrix [out, in]."""
    outputs, inputs = shape
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = rng.integers(1, max_zero + 1, (inputs // GROUP, outputs))
    scales = rng.uniform(0.01, 0.05, zeros.shape).astype(np.float16)
    matrix = np.empty(shape, np.float32)
    for i in range(inputs):
        group = i // GROUP
        matrix[:, i] = (codes[i] - zeros[group]) * scales[group].astype(np.float32)
    return codes, zeros, scales, matrix


def _awq(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    codes, zeros, scales, matrix = _four_bits(shape, rng, 15)
    return {
        f"{stem}.qweight": _words(codes, AWQ_COLUMNS),
        f"{stem}.qzeros": _words(zeros, AWQ_COLUMNS),
        f"{stem}.scales": scales,
    }, matrix


def _gptq(stem: str, shape: tuple[int, int], rng: np.random.Generator, stored_less: int = 1) -> Any:
    codes, zeros, scales, matrix = _four_bits(shape, rng, 15 + stored_less)
    return {
        f"{stem}.qweight": _words(codes.T, tuple(range(8))).T,
        f"{stem}.qzeros": _words(zeros - stored_less, tuple(range(8))),
        f"{stem}.scales": scales,
        f"{stem}.g_idx": (np.arange(shape[1]) // GROUP).astype(np.int32),
    }, matrix


def _int8(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    scales = rng.uniform(0.001, 0.003, (shape[0], 1)).astype(ml_dtypes.bfloat16)
    matrix = codes.astype(np.float32) * scales.astype(np.float32)
    return {f"{stem}.weight": codes, f"{stem}.weight_scale": scales}, matrix


def _fp8(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Any:
    codes = (100 * rng.standard_normal(shape)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.001, 0.003, 1).astype(np.float32)
    return {
        f"{stem}.weight": codes,
        f"{stem}.weight_scale": scale,
        f"{stem}.input_scale": np.ones(1, np.float32),
    }, codes.astype(np.float32) * scale


STORES: dict[str, Store] = {
    "awq": _awq,
    "gptq": _gptq,
    "gptq_v2": lambda stem, shape, rng: _gptq(stem, shape, rng, stored_less=0),
    "int8": _int8,
    "fp8": _fp8,
}
