"""Which pages are free, and who owns the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.errors import AccountingError
from jaxsgl.step import SCRATCH_PAGE

FREE = 0
CACHE = -1
"""Owner of every page in the radix tree."""
SCRATCH = -2
"""Owner of the page that padding writes to."""


class PagePool:
    """A stack of free pages and the owner of each page: FREE, CACHE, SCRATCH, or a positive lease
    id.

    A page changes hands only by naming its present owner, so that freeing a page twice, or freeing
    somebody else's, raises AccountingError at once and changes nothing.
    """

    def __init__(self, num_pages: int) -> None:
        """`num_pages` counts the scratch page, which is never handed out."""
        if num_pages < 2:
            raise ValueError(f"a pool needs a page beside the scratch page; got {num_pages=}")
        usable = [page for page in range(num_pages) if page != SCRATCH_PAGE]
        self.capacity = len(usable)
        """Pages that can be owned."""
        self.num_free = len(usable)
        self._stack = np.array(usable[::-1], dtype=np.int32)
        """The first `num_free` entries are free; the last of them is handed out next."""
        self._owner = np.full(num_pages, FREE, dtype=np.int64)
        self._owner[SCRATCH_PAGE] = SCRATCH

    def take(self, num_pages: int, owner: int) -> NDArray[np.int32]:
        """Hand `num_pages` free pages to `owner`. Raises ValueError if there are fewer."""
        if not 0 <= num_pages <= self.num_free:
            raise ValueError(f"{num_pages} pages wanted, {self.num_free} are free")
        rest = self.num_free - num_pages
        pages = self._stack[rest : self.num_free][::-1].copy()
        self._owner[pages] = owner
        self.num_free = rest
        return pages

    def transfer(self, pages: NDArray[np.int32], source: int, target: int) -> None:
        """Hand pages from one owner to another."""
        self._require(pages, source)
        self._owner[pages] = target

    def free(self, pages: NDArray[np.int32], owner: int) -> None:
        """Take pages back from `owner`."""
        self._require(pages, owner)
        self._owner[pages] = FREE
        self._stack[self.num_free : self.num_free + len(pages)] = pages
        self.num_free += len(pages)

    def owners(self, pages: NDArray[np.int32]) -> NDArray[np.int64]:
        """The owner of each page."""
        return self._owner[pages]

    def owned_by(self, owner: int) -> NDArray[np.intp]:
        """Every page of an owner, ascending, by a scan of the whole pool."""
        return np.flatnonzero(self._owner == owner)

    def check(self) -> None:
        """Raise AccountingError unless the stack holds exactly the free pages, once each."""
        stacked = np.sort(self._stack[: self.num_free])
        if not np.array_equal(stacked, self.owned_by(FREE)):
            raise AccountingError(
                f"the free stack holds {stacked.tolist()}, "
                f"the owners say {self.owned_by(FREE).tolist()}"
            )
        if self.owned_by(SCRATCH).tolist() != [SCRATCH_PAGE]:
            raise AccountingError(f"scratch pages are {self.owned_by(SCRATCH).tolist()}")

    def _require(self, pages: NDArray[np.int32], owner: int) -> None:
        owners = self._owner[pages]
        if (owners != owner).any():
            wrong = int(np.flatnonzero(owners != owner)[0])
            raise AccountingError(f"page {pages[wrong]} is owned by {owners[wrong]}, not {owner}")
        if len(set(pages.tolist())) != len(pages):
            raise AccountingError(f"a page is named twice in {pages.tolist()}")
