"""Named inputs of products with quantised matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Case:
    name: str
    kind: str
    """int8, float8 or int4."""
    tokens: int
    outputs: int
    inputs: int
    group: int = 128
    symmetric: bool = False
    """Zeros are left out."""
    wide_x: bool = False
    """x is no float8 where values are."""


class Inputs(NamedTuple):
    """The arrays, in the order of `api.quant_matmul`; x is float32 or float8."""

    x: NDArray[Any]
    values: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[np.uint8] | None


CASES = (
    Case("int4, one token", "int4", 1, 64, 512),
    Case("int4, a batch", "int4", 9, 96, 384),
    Case("int4, more tokens than a tile", "int4", 70, 32, 256),
    Case("int4, outputs that fill no tile", "int4", 3, 40, 256),
    Case("int4, one group", "int4", 2, 32, 128),
    Case("int4, an odd number of groups", "int4", 2, 32, 640),
    Case("int4, groups of 64", "int4", 5, 48, 576, group=64),
    Case("int4, groups of 32", "int4", 1, 32, 96, group=32),
    Case("int4, no zeros", "int4", 2, 40, 640, symmetric=True),
    Case("int4, one token, no zeros", "int4", 1, 42, 1280, symmetric=True),
    Case("int4, one token, groups of 64", "int4", 1, 16, 576, group=64),
    Case("int8, one token", "int8", 1, 64, 512),
    Case("int8, one token, outputs that fill no tile", "int8", 1, 43, 576),
    Case("int8, a batch", "int8", 20, 40, 576),
    Case("int8, few inputs", "int8", 3, 16, 96),
    Case("float8, one token", "float8", 1, 64, 512),
    Case("float8, a batch", "float8", 20, 40, 576),
    Case("float8 times float32", "float8", 3, 40, 576, wide_x=True),
    Case("float8 times float32, one token", "float8", 1, 40, 576, wide_x=True),
)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((case.tokens, case.inputs), np.float32)
    shape = (case.outputs, case.inputs)
    if case.kind == "int4":
        groups = case.inputs // case.group
        values = rng.integers(0, 256, (case.outputs, case.inputs // 2), np.uint8)
        scales = rng.uniform(-0.1, 0.1, (case.outputs, groups)).astype(np.float16)
        zeros = None if case.symmetric else rng.integers(0, 16, scales.shape, np.uint8)
        return Inputs(x, values, scales, zeros)
    scales = rng.uniform(0.001, 0.01, case.outputs).astype(np.float32)
    if case.kind == "int8":
        return Inputs(x, rng.integers(-128, 128, shape, np.int8), scales, None)
    values = (100 * rng.standard_normal(shape, np.float32)).astype(FLOAT8)
    return Inputs(x if case.wide_x else x.astype(FLOAT8), values, scales, None)
