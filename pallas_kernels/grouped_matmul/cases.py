"""Named inputs of products of rows with the matrices of their groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pallas_kernels.paged_cases import DTYPES


@dataclass(frozen=True)
class Case:
    name: str
    sizes: tuple[int, ...]
    """Rows of each group."""
    inputs: int
    outputs: int
    beyond: int = 0
    """Rows of no group."""
    dtype: str = "float32"
    kind: str = "plain"
    """Of the matrices: plain, int8, float8 or int4."""
    group: int = 128
    """Inputs that share a scale, with int4."""
    symmetric: bool = True
    """With int4: zeros are left out."""


class Inputs(NamedTuple):
    """The arrays, in the order of `api.grouped_matmul`."""

    x: NDArray[Any]
    matrices: NDArray[Any]
    group_sizes: NDArray[np.int32]
    scales: NDArray[Any] | None = None
    zeros: NDArray[np.uint8] | None = None


CASES = (
    Case("one row", (1,), 64, 64),
    Case("one row of the last group", (0, 0, 1), 64, 64),
    Case("uneven groups", (3, 0, 40, 1, 17, 0), 96, 160),
    Case("rows of no group", (5, 0, 2), 64, 32, beyond=9),
    Case("no row has a group", (0, 0), 32, 32, beyond=5),
    Case("one group has them all", (0, 70, 0), 128, 64),
    Case("sizes that no tile divides", (7, 9), 24, 40),
    Case("fewer inputs than a block", (2, 1), 8, 16),
    Case("bfloat16", (3, 0, 20, 1), 128, 96, beyond=2, dtype="bfloat16"),
    Case("int8, uneven groups", (3, 0, 40, 1, 17, 0), 96, 160, kind="int8"),
    Case("int8, sizes that no tile divides", (7, 9), 24, 40, beyond=3, kind="int8"),
    Case("float8, bfloat16", (3, 0, 20, 1), 128, 96, 2, "bfloat16", "float8"),
    Case("int4, uneven groups", (3, 0, 40, 1, 17, 0), 256, 160, kind="int4"),
    Case("int4, zeros", (0, 1), 128, 40, beyond=3, kind="int4", symmetric=False),
    Case("int4, groups of 32", (2, 1), 96, 32, kind="int4", group=32),
    Case("int4, bfloat16", (3, 0, 20, 1), 384, 96, 2, "bfloat16", "int4"),
)
_LARGE = (
    Case("Qwen3 30B, up, decode", (2,) * 64 + (0,) * 64, 2048, 1536, dtype="bfloat16"),
    Case("Qwen3 30B, down", tuple(range(128)), 768, 2048, beyond=64, dtype="bfloat16"),
    Case("Mixtral on four devices, up", (5, 0, 300, 60, 2, 0, 128, 17), 4096, 7168, 0, "bfloat16"),
    Case("DeepSeek V2 Lite, down", (4,) * 64, 1408, 2048, dtype="bfloat16"),
)
LARGE_CASES = _LARGE + tuple(
    replace(case, name=f"{case.name}, {kind}", kind=kind)
    for kind in ("int8", "float8", "int4")
    for case in _LARGE
)
"""Of models as they are served; the interpreter and a CPU are too slow for them."""


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Rows of no group are NaN."""
    rng = np.random.default_rng(seed)
    owned = sum(case.sizes)
    x = rng.standard_normal((owned + case.beyond, case.inputs), np.float32)
    x[owned:] = np.nan
    x = x.astype(DTYPES[case.dtype])
    sizes = np.array(case.sizes, np.int32)
    shape = (len(sizes), case.inputs, case.outputs)
    if case.kind == "plain":
        return Inputs(x, rng.standard_normal(shape, np.float32).astype(x.dtype), sizes)
    if case.kind == "int4":
        grouped = (shape[0], case.inputs // case.group, case.outputs)
        packed = rng.integers(0, 256, (shape[0], case.inputs // 2, case.outputs), np.uint8)
        scales = rng.uniform(-0.1, 0.1, grouped).astype(np.float16)
        zeros = None if case.symmetric else rng.integers(0, 16, grouped, np.uint8)
        return Inputs(x, packed, sizes, scales, zeros)
    scales = rng.uniform(0.001, 0.01, (shape[0], case.outputs)).astype(np.float32)
    if case.kind == "int8":
        return Inputs(x, rng.integers(-128, 128, shape, np.int8), sizes, scales)
    # Beyond 448 there are none.
    values = np.clip(100 * rng.standard_normal(shape, np.float32), -448, 448)
    return Inputs(x, values.astype(DTYPES["float8_e4m3fn"]), sizes, scales)
