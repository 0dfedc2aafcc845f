"""What a request holds of the KV cache."""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.node import Receipt

_MIN_BUFFER_PAGES = 16


class LeaseState(Enum):
    OPEN = "open"
    LOST = "lost"
    """The cache was reset under it; all that may still be done is to close it."""
    CLOSED = "closed"


class Lease:
    """The pages of one request, in the order of its tokens. Changed by its KVCacheManager only."""

    __slots__ = (
        "_buffer",
        "capacity_len",
        "lease_id",
        "namespace",
        "num_locked_pages",
        "num_reused",
        "page_names",
        "page_size",
        "pages",
        "receipt",
        "shared_len",
        "state",
    )

    def __init__(
        self,
        lease_id: int,
        namespace: str,
        page_size: int,
        receipt: Receipt,
        reused_pages: NDArray[np.int32],
        num_reused: int,
    ) -> None:
        self.lease_id = lease_id
        """Positive; names the owner of private pages in the pool."""
        self.namespace = namespace
        self.page_size = page_size
        self.receipt = receipt
        self.num_locked_pages = len(reused_pages)
        """Length of the path in the tree that the receipt protects."""
        self.shared_len = len(reused_pages) * page_size
        """Tokens whose KV was there when the lease was opened: no step may write it again."""
        self.num_reused = num_reused
        """How many of them need not be computed; one less where the logits of the last are
        wanted."""
        self.page_names: list[bytes] = []
        """What `page_hash` calls its prefixes, as far as somebody wanted to know."""
        self.state = LeaseState.OPEN
        self.pages: NDArray[np.int32] = reused_pages
        """[pages], read-only, only ever growing: page i holds tokens from i * page_size on."""
        self.capacity_len = 0
        """Tokens that `pages` have room for; -1 once the lease is no longer open."""
        self._buffer = np.empty(max(_MIN_BUFFER_PAGES, 2 * len(reused_pages)), dtype=np.int32)
        self._buffer[: len(reused_pages)] = reused_pages
        self._show(len(reused_pages))

    def append(self, pages: NDArray[np.int32]) -> None:
        """Add pages at the end."""
        start, stop = len(self.pages), len(self.pages) + len(pages)
        if stop > len(self._buffer):
            larger = np.empty(2 * stop, dtype=np.int32)
            larger[:start] = self.pages
            self._buffer = larger
        self._buffer[start:stop] = pages
        self._show(stop)

    def end(self, state: LeaseState) -> None:
        """Leave the open state; nothing is held from now on."""
        self.state = state
        self._show(0)
        self.capacity_len = -1

    def _show(self, num_pages: int) -> None:
        self.pages = self._buffer[:num_pages]
        self.pages.flags.writeable = False
        self.capacity_len = num_pages * self.page_size
