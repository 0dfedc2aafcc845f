"""Named inputs of products of rows with the matrices of their groups."""

from __future__ import annotations

from dataclasses import dataclass
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


class Inputs(NamedTuple):
    """The arrays, in the order of `api.grouped_matmul`."""

    x: NDArray[Any]
    matrices: NDArray[Any]
    group_sizes: NDArray[np.int32]


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
)
LARGE_CASES = (
    Case("Qwen3 30B, up, decode", (2,) * 64 + (0,) * 64, 2048, 1536, dtype="bfloat16"),
    Case("Qwen3 30B, down", tuple(range(128)), 768, 2048, beyond=64, dtype="bfloat16"),
    Case("Mixtral, up", (5, 0, 300, 60, 2, 0, 128, 17), 4096, 28672, dtype="bfloat16"),
    Case("DeepSeek V2 Lite, down", (4,) * 64, 1408, 2048, dtype="bfloat16"),
)
"""Of models as they are served; the interpreter and a CPU are too slow for them."""


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Rows of no group are NaN."""
    rng = np.random.default_rng(seed)
    owned = sum(case.sizes)
    x = rng.standard_normal((owned + case.beyond, case.inputs), np.float32)
    x[owned:] = np.nan
    matrices = rng.standard_normal((len(case.sizes), case.inputs, case.outputs), np.float32)
    dtype = DTYPES[case.dtype]
    return Inputs(x.astype(dtype), matrices.astype(dtype), np.array(case.sizes, np.int32))
