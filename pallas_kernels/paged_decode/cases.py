"""Named inputs of decode attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pallas_kernels.paged_cases import DTYPES, PagedCache, make_cache


@dataclass(frozen=True)
class Case:
    name: str
    kv_len: tuple[int, ...]
    page_size: int = 16
    q_heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    dtype: str = "float32"
    kv_dtype: str | None = None
    """Where the pages have another one."""
    soft_cap: float | None = None
    window: int | None = None


@dataclass(frozen=True)
class SharedCase:
    """Packs of rows that begin with the same pages."""

    case: Case
    shared_len: tuple[int, ...]
    """By pack."""
    pack_start: tuple[int, ...] = (0, 16)

    @property
    def name(self) -> str:
        return self.case.name


class Inputs(NamedTuple):
    """The arrays, in the order of `api.paged_decode`, and its options."""

    q: NDArray[np.floating]
    cache: PagedCache
    kv_len: NDArray[np.int32]
    options: dict[str, Any]


CASES = (
    Case("one token", (1,)),
    Case("one row", (77,)),
    Case("one row, to the end of a block", (128,)),
    Case("rows of one length", (160, 160, 160, 160)),
    Case("uneven rows", (700, 3, 0, 64, 65, 129, 0, 1, 300, 16, 17, 15, 31, 2, 5, 90)),
    Case("no row has tokens", (0, 0)),
    Case("more rows than one loop narrows to", (260, *range(1, 70, 3))),
    Case("pages of one token", (33, 0, 5, 70), page_size=1),
    Case("pages of 64 tokens", (200, 64, 63, 0, 130), page_size=64),
    Case("pages longer than a block", (300, 5), page_size=128),
    Case("a kv head per query head", (50, 7), q_heads=4, kv_heads=4, head_dim=32),
    Case("one kv head", (50, 7, 0), q_heads=8, kv_heads=1, head_dim=32),
    Case("eight kv heads of 128", (70, 20), q_heads=32, kv_heads=8, head_dim=128),
    Case("heads of 24", (50, 7, 0), q_heads=4, kv_heads=2, head_dim=24),
    Case("heads of 80, float8 pages", (70, 3), 16, 4, 2, 80, "bfloat16", "float8_e4m3fn"),
    Case("soft cap", (40, 150, 0), soft_cap=1.5),
    Case("window", (40, 150, 400, 0, 1), window=33),
    Case("window of one token", (5, 90), window=1),
    Case("window longer than the rows", (40, 3), window=500),
    Case("soft cap and window, narrowing", (500, *(9,) * 11), soft_cap=4.0, window=100),
    Case("bfloat16", (160, 3, 0, 64), dtype="bfloat16"),
    Case("bfloat16, soft cap and window", (160, 70), dtype="bfloat16", soft_cap=2.0, window=64),
    Case("float8 pages", (160, 3, 0, 64), dtype="bfloat16", kv_dtype="float8_e4m3fn"),
    Case("float8 pages, float32 queries", (70,), kv_dtype="float8_e4m3fn", window=30),
)

LARGE_CASES = (
    Case("Llama 8B", (4096, 1, 1100, 0, 1024), q_heads=32, kv_heads=8, head_dim=128),
    Case("Llama 8B, bfloat16", (4096, 1024), 16, 32, 8, 128, "bfloat16"),
    Case("Llama 8B, float8 pages", (4096, 1024), 16, 32, 8, 128, "bfloat16", "float8_e4m3fn"),
    Case("Llama 8B, many rows", tuple(range(0, 600, 4)), 16, 32, 8, 128, "bfloat16"),
    Case("Qwen2 7B, bfloat16", (4096, 1024), 16, 28, 4, 128, "bfloat16"),
    Case("Phi 3, bfloat16", (4096, 1024), 16, 32, 32, 96, "bfloat16"),
    Case("Phi 3, float8 pages", (4096, 1024), 16, 32, 32, 96, "bfloat16", "float8_e4m3fn"),
    Case("heads of 256", (1500, 700), 64, 16, 8, 256, "bfloat16", soft_cap=30.0, window=900),
    Case("heads of 256, float32", (1500, 700), 1, 16, 8, 256),
)
"""Of models as they are served; the interpreter and a CPU are too slow for them."""


SHARED_CASES = (
    SharedCase(Case("one pack", tuple(range(100, 116))), (96,)),
    SharedCase(Case("a prefix of one page", tuple(range(20, 36))), (16,)),
    SharedCase(Case("nothing in common", tuple(range(1, 17))), (0,)),
    SharedCase(Case("up to the last token", (64,) * 16), (64,)),
    SharedCase(
        Case("several packs, padding", (*range(300, 316), *(90,) * 9, *(70, 80, 65), 0, 0)),
        (256, 0, 48, 0, 0),
        (0, 16, 25, 28, 28, 28),
    ),
    SharedCase(Case("pages of one token", tuple(range(40, 56)), page_size=1), (37,)),
    SharedCase(Case("pages of 64", (200,) * 16, page_size=64), (192,)),
    SharedCase(Case("seven heads a group", (90,) * 16, q_heads=14, kv_heads=2, head_dim=32), (80,)),
    SharedCase(Case("heads of 24", (90,) * 16, q_heads=4, kv_heads=2, head_dim=24), (80,)),
    SharedCase(Case("soft cap", tuple(range(80, 96)), soft_cap=1.5), (80,)),
    SharedCase(Case("bfloat16", tuple(range(100, 116)), dtype="bfloat16"), (80,)),
    SharedCase(Case("float8 pages", (90,) * 16, dtype="bfloat16", kv_dtype="float8_e4m3fn"), (64,)),
)
LARGE_SHARED_CASES = (
    SharedCase(
        Case("Llama 8B", tuple(range(2100, 2148)), 16, 32, 8, 128, "bfloat16"),
        (2048, 1024, 0, 512),
        (0, 16, 31, 40, 48),
    ),
    SharedCase(Case("Qwen2 7B", tuple(range(1100, 1116)), 16, 28, 4, 128, "bfloat16"), (1088,)),
    SharedCase(Case("Phi 3", tuple(range(1100, 1116)), 16, 32, 32, 96, "bfloat16"), (1088,)),
)


def make_shared_inputs(shared: SharedCase, seed: int = 0) -> Inputs:
    """The rows of each pack have the first pages of its first row."""
    inputs = make_inputs(shared.case, seed)
    table = inputs.cache.page_table.copy()
    starts = shared.pack_start
    for start, end, length in zip(starts[:-1], starts[1:], shared.shared_len, strict=True):
        num_pages = length // shared.case.page_size
        if end > start:
            table[start:end, :num_pages] = table[start, :num_pages]
    return inputs._replace(cache=inputs.cache._replace(page_table=table))


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    kv_dtype = case.kv_dtype or case.dtype
    cache = make_cache(rng, case.kv_len, case.page_size, case.kv_heads, case.head_dim, kv_dtype)
    q = rng.standard_normal((len(case.kv_len), case.q_heads, case.head_dim), np.float32)
    return Inputs(
        q=q.astype(DTYPES[case.dtype]),
        cache=cache,
        kv_len=np.array(case.kv_len, np.int32),
        options={
            "scale": case.head_dim**-0.5,
            "soft_cap": case.soft_cap,
            "window": case.window,
        },
    )
