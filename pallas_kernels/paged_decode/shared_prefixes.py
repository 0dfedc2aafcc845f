"""How rows of decode attention are said to begin with the same pages."""

from __future__ import annotations

from typing import NamedTuple

import jax

PACK_ROWS = 16
"""The most rows of a pack: with the query heads of a kv head, as many as tensor cores like."""


class SharedPrefixes(NamedTuple):
    """Packs of rows that have leading pages in common."""

    pack_start: jax.Array
    """int32 [packs + 1]: pack p is rows pack_start[p] to pack_start[p + 1], at most PACK_ROWS of
    them, or none. Ascending; begins with 0. Rows behind the last pack have length 0."""
    shared_len: jax.Array
    """int32 [packs]: the leading tokens that lie in the same pages in all rows of a pack, none of
    which is shorter."""


def max_packs(rows: int) -> int:
    """Packs that are made room for: twice what full ones would be."""
    return 2 * -(-rows // PACK_ROWS)
