"""Named inputs of writing to pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pallas_kernels.paged_cases import DTYPES


@dataclass(frozen=True)
class Case:
    name: str
    tokens: int
    page_size: int = 16
    kv_heads: int = 3
    head_dim: int = 64
    dtype: str = "float32"
    scale: float = 1.0
    """Size of the values written."""
    num_dropped: int = 0
    """Tokens whose page or offset does not exist."""


class Inputs(NamedTuple):
    """The arrays, in the order of `api.kv_write`."""

    k_pages: NDArray[np.floating]
    v_pages: NDArray[np.floating]
    k: NDArray[np.floating]
    v: NDArray[np.floating]
    page: NDArray[np.int32]
    offset: NDArray[np.int32]


CASES = (
    Case("one token", 1),
    Case("a batch", 16),
    Case("a chunk", 200),
    Case("pages of one token", 9, page_size=1),
    Case("pages of 64 tokens", 70, page_size=64),
    Case("places that do not exist", 24, num_dropped=7),
    Case("one kv head", 5, kv_heads=1, head_dim=32),
    Case("bfloat16 pages", 12, dtype="bfloat16"),
    Case("float8 pages, values beyond their range", 12, dtype="float8_e4m3fn", scale=300.0),
)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Every token has a place of its own."""
    rng = np.random.default_rng(seed)
    num_pages = 3 + 2 * case.tokens // case.page_size
    shape = (num_pages, case.page_size, case.kv_heads, case.head_dim)
    places = rng.permutation(num_pages * case.page_size)[: case.tokens].astype(np.int32)
    page, offset = np.divmod(places, np.int32(case.page_size))
    for token in range(case.num_dropped):
        lost = page if token % 2 else offset
        lost[token] = rng.choice([-1, -num_pages, 2**31 - 1, max(shape)])
    k_pages, v_pages = rng.standard_normal((2, *shape), np.float32).astype(DTYPES[case.dtype])
    k, v = rng.standard_normal((2, case.tokens, *shape[2:]), np.float32) * np.float32(case.scale)
    return Inputs(k_pages, v_pages, k, v, page, offset)
