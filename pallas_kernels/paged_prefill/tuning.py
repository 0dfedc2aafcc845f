"""How the Triton kernel of prefill attention is laid out on the chip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """All are powers of two but num_stages."""

    dot_rows: int = 128
    """Rows of a program's products: query tokens times the query heads of a kv head."""
    tile_len: int = 64
    """Keys per iteration."""
    num_warps: int = 4
    num_stages: int = 2
    """Tiles in flight, in shared memory."""


FEW_ROWS = 2 * 132 * 128
"""Of products, in all: as many as an H100 works on at a time, with two programs of 128 on each of
its multiprocessors."""


def default_tuning(*, head_dim: int, itemsize: int, num_rows: int) -> Tuning:
    """What suits queries of so many entries of so many bytes, and so many rows of products in
    all."""
    if itemsize > 2:  # No tensor cores: what counts is that a tile fits the registers.
        return Tuning(dot_rows=32, tile_len=32)
    if head_dim > 128:
        return Tuning(dot_rows=64, tile_len=32)
    if num_rows <= FEW_ROWS:  # The longest program decides, and is half as long.
        return Tuning(dot_rows=64, num_stages=3)
    return Tuning()
