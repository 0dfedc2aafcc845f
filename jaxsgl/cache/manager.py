"""Pages for requests: reuse what the radix tree has, take free ones, evict when there are none."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.check import check_lease, check_tree
from jaxsgl.cache.errors import AccountingError, LeaseError
from jaxsgl.cache.eviction import make_policy
from jaxsgl.cache.lease import Lease, LeaseState
from jaxsgl.cache.page_hash import page_hashes, root_hash
from jaxsgl.cache.page_pool import CACHE, PagePool
from jaxsgl.cache.prefix_journal import PrefixJournal
from jaxsgl.cache.radix_tree import RadixTree
from jaxsgl.token_ids import token_array

TokenIds = Sequence[int] | NDArray[np.int32]
"""An array of 32-bit integers, NumPy's or Python's, is the cheap form; anything else is converted
first."""


class KVCacheManager:
    """All KV pages of one replica. Each is free, cached in the radix tree, or private to one lease.

    A request opens a lease, grows it before each step, may publish what is valid on the device, and
    closes it once no dispatched step mentions it. Only tokens whose KV is valid may be published.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        radix: bool = True,
        eviction: str = "lru",
        quotas: Mapping[str, int] | None = None,
        default_quota: int | None = None,
    ) -> None:
        """`num_pages` counts the scratch page. Without `radix`, nothing is shared or kept.

        `eviction` is lru, lfu or priority. `quotas` are cached pages by namespace, `default_quota`
        those of every other one: beyond them a namespace may keep pages that nobody wants, but
        loses them first.
        """
        if page_size < 1:
            raise ValueError(f"a page holds at least one token; got {page_size=}")
        limits = [*(quotas or {}).values(), 0 if default_quota is None else default_quota]
        if min(limits) < 0:
            raise ValueError("a quota is a number of pages, 0 or more")
        self._num_pages = num_pages
        self._page_size = page_size
        self._radix = radix
        self._eviction = eviction
        self._quotas = dict(quotas or {})
        self._default_quota = default_quota
        self._last_lease_id = 0
        self._leases: dict[int, Lease] = {}
        """The open ones."""
        self._pool = PagePool(num_pages)
        self._tree = self._new_tree()
        self._no_pages = np.empty(0, dtype=np.int32)
        self.journal: PrefixJournal | None = None
        """Of the prefixes cached from now on, where somebody wants to know."""

    # -- Counters.

    @property
    def num_free(self) -> int:
        """Pages nobody owns."""
        return self._pool.num_free

    @property
    def num_cached(self) -> int:
        """Pages in the tree that no lease needs; all of them can be evicted."""
        return self._tree.num_evictable

    @property
    def num_protected(self) -> int:
        """Pages in the tree on the path of an open lease."""
        return self._tree.num_protected

    @property
    def num_private(self) -> int:
        """Pages that belong to one lease alone."""
        return self._pool.capacity - self._pool.num_free - self._tree.num_pages

    @property
    def num_locks(self) -> int:
        """Locks not yet given back: one for each open lease."""
        return self._tree.num_receipts

    def num_protected_in(self, namespace: str) -> int:
        """Those of `num_protected` that are of one namespace."""
        home = self._tree.namespaces.get(namespace)
        return 0 if home is None else home.num_protected

    # -- The life of a lease.

    def match_len(self, namespace: str, token_ids: TokenIds) -> int:
        """Tokens that a lease opened now would reuse. Changes nothing, not even recency."""
        limit = self._num_reusable_pages(len(token_ids), None)
        num_pages = self._tree.match(namespace, self._bytes(token_ids, 0, limit))
        return self._num_reused(num_pages, len(token_ids))

    def touch(self, namespace: str, token_ids: TokenIds) -> None:
        """Make what a lease opened now would reuse the most recent, so that others go first."""
        limit = self._num_reusable_pages(len(token_ids), None)
        self._tree.touch(namespace, self._bytes(token_ids, 0, limit))

    def open(
        self,
        namespace: str,
        token_ids: TokenIds,
        *,
        max_reuse: int | None = None,
        priority: int = 0,
    ) -> Lease:
        """Lock the longest cached prefix and start a lease with its pages. Allocates nothing.

        At least the last token is left to compute, since its logits are wanted; its KV may be
        there all the same, in a last page that is reused whole. `max_reuse` bounds the tokens
        reused. `priority` is what the `priority` eviction policy goes by.
        """
        limit = self._num_reusable_pages(len(token_ids), max_reuse)
        tokens = self._bytes(token_ids, 0, limit)
        receipt, pages = self._tree.lock(namespace, tokens, priority)
        self._last_lease_id += 1
        num_reused = self._num_reused(len(pages), len(token_ids))
        lease = Lease(self._last_lease_id, namespace, self._page_size, receipt, pages, num_reused)
        self._leases[lease.lease_id] = lease
        return lease

    def grow(self, lease: Lease, num_tokens: int) -> NDArray[np.int32] | None:
        """Make the lease's pages cover `num_tokens` tokens; return the pages added, possibly none.

        Evicts cached pages if too few are free. Returns None, with nothing changed, if even that is
        not enough.
        """
        if num_tokens <= lease.capacity_len:
            return self._no_pages
        self._require_open(lease)
        num_new = -(-num_tokens // self._page_size) - len(lease.pages)
        num_short = num_new - self._pool.num_free
        if num_short > self._tree.num_evictable:
            return None
        if num_short > 0:
            self._evict(num_short)
        pages = self._pool.take(num_new, lease.lease_id)
        lease.append(pages)
        return pages

    def publish(self, lease: Lease, token_ids: TokenIds) -> None:
        """Share the KV of `token_ids`, a prefix of the lease's sequence that is valid on the
        device.

        Their whole pages enter the tree and stay locked by the lease. Where the tree has pages of
        the same tokens already, the lease's own stay private until it is closed: its row never
        changes.
        """
        self._require_open(lease)
        num_pages = len(token_ids) // self._page_size
        if num_pages > len(lease.pages):
            raise ValueError(f"{len(token_ids)} tokens in {len(lease.pages)} pages")
        start = lease.num_locked_pages
        if not self._radix or num_pages <= start:
            return
        pages = lease.pages[start:num_pages]
        tokens = self._bytes(token_ids, start, num_pages)
        num_present = self._tree.insert(lease.receipt, tokens, pages)
        lease.num_locked_pages = num_pages
        self._pool.transfer(pages[num_present:], lease.lease_id, CACHE)
        if self.journal is not None and num_present < len(pages):
            names = self._names(lease, token_ids, num_pages)
            self.journal.add(pages[num_present:], names[start + num_present :])

    def close(self, lease: Lease, token_ids: TokenIds | None) -> None:
        """End a lease: publish `token_ids` unless None, free what is private, give the lock back.

        Raises LeaseError if the lease was closed before. Closing a lease lost to `reset` does
        nothing else.
        """
        if lease.state is LeaseState.LOST:
            lease.end(LeaseState.CLOSED)
            return
        self._require_open(lease)
        if token_ids is not None:
            self.publish(lease, token_ids)
        private = lease.pages[self._pool.owners(lease.pages) == lease.lease_id]
        self._pool.free(private, lease.lease_id)
        self._tree.unlock(lease.receipt)
        del self._leases[lease.lease_id]
        lease.end(LeaseState.CLOSED)

    # -- The whole cache.

    def clear(self) -> int:
        """Drop every cached page that no lease needs; return how many were freed."""
        return self._evict(self._tree.num_evictable)

    def reset(self) -> None:
        """Forget everything: the pages' contents are lost. Open leases can then only be closed."""
        for lease in self._leases.values():
            lease.end(LeaseState.LOST)
        self._leases.clear()
        self._pool = PagePool(self._num_pages)
        self._tree = self._new_tree()
        if self.journal is not None:
            self.journal.clear()

    def check(self) -> None:
        """Recount every page and lock; raise AccountingError naming the first discrepancy."""
        self._pool.check()
        tree_pages = np.sort(check_tree(self._tree))
        cached = self._pool.owned_by(CACHE)
        if not np.array_equal(tree_pages, cached):
            raise AccountingError(
                f"the tree holds pages {tree_pages.tolist()}, the pool says {cached.tolist()}"
            )
        num_private = sum(
            check_lease(lease, self._pool, self._tree) for lease in self._leases.values()
        )
        if num_private != self.num_private:
            raise AccountingError(f"{self.num_private} private pages, leases hold {num_private}")
        if len(self._leases) != self._tree.num_receipts:
            raise AccountingError(
                f"{self._tree.num_receipts} locks for {len(self._leases)} open leases"
            )

    # -- Helpers.

    def _evict(self, num_pages: int) -> int:
        """Free cached pages that no lease needs; how many there were."""
        pages = self._tree.evict(num_pages)
        self._pool.free(pages, CACHE)
        if self.journal is not None:
            self.journal.drop(pages)
        return len(pages)

    def _names(self, lease: Lease, token_ids: TokenIds, num_pages: int) -> list[bytes]:
        """What the lease's first `num_pages` prefixes of whole pages are called."""
        names = lease.page_names
        last = names[-1] if names else root_hash(lease.namespace)
        tokens = self._bytes(token_ids, len(names), num_pages)
        names += page_hashes(last, tokens, self._tree.page_bytes)
        return names

    def _new_tree(self) -> RadixTree:
        return RadixTree(
            self._page_size,
            make_policy(self._eviction, self._num_pages),
            quotas=self._quotas,
            default_quota=self._default_quota,
        )

    def _num_reusable_pages(self, num_tokens: int, max_reuse: int | None) -> int:
        """Whole pages that may be reused of a sequence."""
        if not self._radix:
            return 0
        return (num_tokens if max_reuse is None else min(num_tokens, max_reuse)) // self._page_size

    def _num_reused(self, num_pages: int, num_tokens: int) -> int:
        """Tokens of a sequence that its cached pages spare."""
        return max(0, min(num_pages * self._page_size, num_tokens - 1))

    def _bytes(self, token_ids: TokenIds, start: int, stop: int) -> bytes:
        """Pages `start` to `stop` of a sequence, as the tree compares them."""
        part = token_ids[start * self._page_size : stop * self._page_size]
        if isinstance(part, np.ndarray):
            if part.dtype != np.int32:
                raise TypeError(f"token ids are int32, not {part.dtype}")
            return part.tobytes()
        return (part if isinstance(part, array) else token_array(part)).tobytes()

    def _require_open(self, lease: Lease) -> None:
        if lease.state is not LeaseState.OPEN:
            raise LeaseError(f"lease {lease.lease_id} is {lease.state.value}")
