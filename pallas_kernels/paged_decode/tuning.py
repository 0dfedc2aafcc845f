"""How the Triton kernel of decode attention is laid out on the chip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """All are powers of two but num_stages."""

    tile_len: int = 64
    """Tokens per iteration."""
    num_splits: int = 1
    """Programs that share a row."""
    num_warps: int = 4
    num_stages: int = 3
    """Tiles in flight, in shared memory."""


DEFAULTS = (
    (8, Tuning(num_splits=32)),
    (16, Tuning(num_splits=16)),
    (64, Tuning(num_splits=8)),
    (128, Tuning(num_splits=2)),
)
"""By the number of (row, kv head) pairs, up to which each holds. Beyond, a row is not shared.
Measured on an H100 with `bench.kernels --tune`."""


def default_tuning(
    *, rows: int, kv_heads: int, head_dim: int, itemsize: int, max_len: int
) -> Tuning:
    """What suits rows of at most max_len tokens, and queries of entries of so many bytes."""
    pairs = rows * kv_heads
    tuning = next((tuning for most, tuning in DEFAULTS if pairs <= most), Tuning())
    if itemsize > 2:  # No tensor cores: what counts is that a tile fits the registers.
        tile_len = 16
    else:  # A tile takes the shared memory that it takes with 128 entries.
        tile_len = max(16, tuning.tile_len // max(1, head_dim // 128))
    num_splits = tuning.num_splits
    while num_splits > 1 and num_splits * tile_len > max_len:
        num_splits //= 2
    return dataclasses.replace(tuning, tile_len=tile_len, num_splits=num_splits)
