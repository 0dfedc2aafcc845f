"""Named inputs of prefill attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pallas_kernels.paged_cases import DTYPES, PagedCache, make_cache


@dataclass(frozen=True)
class Case:
    name: str
    q_len: tuple[int, ...]
    kv_len: tuple[int, ...]
    padding: int = 0
    page_size: int = 16
    q_heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    dtype: str = "float32"
    kv_dtype: str | None = None
    """Where the pages have another one."""
    soft_cap: float | None = None
    window: int | None = None


class Inputs(NamedTuple):
    """The arrays, in the order of `api.paged_prefill`, and its options."""

    q: NDArray[np.floating]
    cache: PagedCache
    q_start: NDArray[np.int32]
    kv_len: NDArray[np.int32]
    options: dict[str, Any]


CASES = (
    Case("one row from its start", (40,), (40,)),
    Case("one row behind a cached prefix", (40,), (333,)),
    Case("a tile exactly", (64,), (64,)),
    Case("many tiles", (200,), (210,), padding=56),
    Case("shorter than its bucket", (5,), (5,), padding=11),
    Case("short rows", (15, 7, 2, 30), (100, 7, 50, 200), padding=10),
    Case("tiles of neighbours overlap", (70, 2, 66, 3), (70, 2, 90, 3), padding=3),
    Case("decode rows among them", (1, 20, 1, 1, 90, 0, 1), (50, 20, 1, 300, 99, 0, 7), padding=13),
    Case("decode rows alone", (1, 1, 1), (9, 200, 1), padding=13),
    Case("rows without tokens", (0, 3, 0, 0), (0, 9, 40, 0), padding=13),
    Case("nothing but padding", (0, 0), (0, 0), padding=16),
    Case("pages of one token", (9, 1, 4), (20, 12, 4), padding=2, page_size=1),
    Case("pages of 64 tokens", (90, 1), (250, 70), padding=37, page_size=64),
    Case("pages longer than a block", (9,), (300,), padding=7, page_size=256),
    Case("a kv head per query head", (9, 1), (50, 7), q_heads=4, kv_heads=4, head_dim=32),
    Case("one kv head", (9, 1), (50, 7), q_heads=8, kv_heads=1, head_dim=32),
    Case("eight kv heads of 128", (12,), (70,), q_heads=32, kv_heads=8, head_dim=128),
    Case("heads of 24", (9, 1), (50, 7), padding=6, q_heads=4, kv_heads=2, head_dim=24),
    Case("heads of 80, float8 pages", (9,), (70,), 0, 16, 4, 2, 80, "bfloat16", "float8_e4m3fn"),
    Case("soft cap", (30, 1), (150, 60), padding=1, soft_cap=1.5),
    Case("window", (80, 1, 30), (400, 150, 30), padding=17, window=33),
    Case("window of one token", (20,), (20,), window=1),
    Case("bfloat16", (70, 1, 9), (160, 64, 9), padding=16, dtype="bfloat16"),
    Case("bfloat16, soft cap and window", (9,), (160,), dtype="bfloat16", soft_cap=2.0, window=64),
    Case("float8 pages", (70, 1, 9), (160, 64, 9), 16, dtype="bfloat16", kv_dtype="float8_e4m3fn"),
)

LARGE_CASES = (
    Case("Llama 8B", (200, 1, 55), (1200, 900, 55), 0, 16, 32, 8, 128),
    Case("Llama 8B, bfloat16", (200, 1, 55), (1200, 900, 55), 0, 16, 32, 8, 128, "bfloat16"),
    Case("Llama 8B, bfloat16, many", (1020, 1, 99), (1200, 900, 99), 0, 16, 32, 8, 128, "bfloat16"),
    Case("Llama 8B, float8 pages", (200,), (900,), 56, 16, 32, 8, 128, "bfloat16", "float8_e4m3fn"),
    Case("Qwen2 7B, bfloat16", (200, 1, 55), (1200, 900, 55), 0, 16, 28, 4, 128, "bfloat16"),
    Case("Phi 3, bfloat16", (200, 1, 55), (1200, 900, 55), 0, 16, 32, 32, 96, "bfloat16"),
    Case("Phi 3, float8 pages", (200,), (900,), 56, 16, 32, 32, 96, "bfloat16", "float8_e4m3fn"),
    Case("heads of 256", (99,), (700,), 29, 64, 16, 8, 256, "bfloat16", None, 30.0, 300),
    Case("heads of 256, float32", (99,), (700,), 29, 1, 16, 8, 256),
)
"""Of models as they are served; the interpreter and a CPU are too slow for them."""


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Padding queries are NaN."""
    rng = np.random.default_rng(seed)
    kv_dtype = case.kv_dtype or case.dtype
    cache = make_cache(rng, case.kv_len, case.page_size, case.kv_heads, case.head_dim, kv_dtype)
    q_start = np.cumsum((0, *case.q_len)).astype(np.int32)
    tokens = int(q_start[-1]) + case.padding
    q = rng.standard_normal((tokens, case.q_heads, case.head_dim), np.float32)
    q[q_start[-1] :] = np.nan
    return Inputs(
        q=q.astype(DTYPES[case.dtype]),
        cache=cache,
        q_start=q_start,
        kv_len=np.array(case.kv_len, np.int32),
        options={
            "scale": case.head_dim**-0.5,
            "soft_cap": case.soft_cap,
            "window": case.window,
        },
    )
