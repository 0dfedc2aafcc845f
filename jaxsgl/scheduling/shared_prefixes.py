"""Which rows of a step begin with the same pages, so that the device reads those once for several.

Rows are put in the order of their pages, which brings together what shares the most, and cut into
packs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxsgl.step import StepPacks

MIN_SAVED_SHARE = 0.25
"""Of the tokens that a step reads: to share less is not worth the merging of parts."""
_PAGE_BYTES = 4


def page_order(pages: NDArray[np.int32]) -> bytes:
    """A key that sorts rows by their pages, first page first."""
    return pages.astype(">i4").tobytes()


class PrefixSharing:
    """Finds packs step by step. What depends on the rows alone is kept: most steps have those of
    the step before."""

    def __init__(self, page_size: int, pack_rows: int) -> None:
        """Packs have at most `pack_rows` rows; with 0, nothing is ever shared."""
        self._page_size = page_size
        self._pack_rows = pack_rows
        self._orders: Sequence[bytes] = ()
        self._sequence: list[int] = []
        self._starts = np.zeros(0, np.int32)
        self._num_common = np.zeros(0, np.int32)

    def find(
        self, orders: Sequence[bytes], kv_len: Sequence[int]
    ) -> tuple[list[int], StepPacks] | None:
        """Of rows with these `page_order`s and lengths: which row comes where, and their packs in
        this order. None where too little is shared."""
        if len(orders) < 2 * self._pack_rows or self._pack_rows == 0:
            return None
        if orders != self._orders:
            self._orders = orders
            self._pack(orders)
        if not self._num_common.any():
            return None
        lengths = np.array(kv_len, np.int32)[self._sequence]
        shortest = np.minimum.reduceat(lengths, self._starts)
        shared_len = np.minimum(self._num_common * np.int32(self._page_size), shortest)
        starts = np.append(self._starts, np.int32(len(orders)))
        num_saved = (shared_len * (np.diff(starts) - 1)).sum()
        if num_saved < MIN_SAVED_SHARE * lengths.sum():
            return None
        return self._sequence, StepPacks(starts, shared_len)

    def _pack(self, orders: Sequence[bytes]) -> None:
        sequence = sorted(range(len(orders)), key=orders.__getitem__)
        starts, num_common = [0], [len(orders[sequence[0]]) // _PAGE_BYTES]
        # As many cuts where prefixes end as there would be full packs anyway.
        cuts_left = -(-len(orders) // self._pack_rows)
        for place in range(1, len(sequence)):
            order = orders[sequence[place]]
            # In sorted order, what the first and the last begin with is what all begin with.
            common = _num_common(orders[sequence[starts[-1]]], order)
            is_alone = place - starts[-1] == 1
            ends_prefix = 2 * common < num_common[-1] and not (is_alone and common)
            if place - starts[-1] == self._pack_rows:
                pass
            elif ends_prefix and cuts_left:
                cuts_left -= 1
            else:
                num_common[-1] = common
                continue
            starts.append(place)
            num_common.append(len(order) // _PAGE_BYTES)
        sizes = np.diff([*starts, len(sequence)])
        self._sequence = sequence
        self._starts = np.array(starts, np.int32)
        # A row alone has nothing in common with anybody.
        self._num_common = np.where(sizes > 1, num_common, 0).astype(np.int32)


def _num_common(one: bytes, other: bytes) -> int:
    """Pages that both begin with."""
    size = min(len(one), len(other))
    first, second = (np.frombuffer(order[:size], np.int32) for order in (one, other))
    differs = first != second
    return int(differs.argmax()) if differs.any() else len(first)
