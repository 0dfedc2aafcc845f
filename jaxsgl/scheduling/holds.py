"""Cached prefixes that stay for a while after the request that computed them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxsgl.cache.manager import KVCacheManager, Lease, TokenIds

HOLD_SHARE = 0.5
"""Of all pages, how many holds may keep together."""
MAX_HOLDS = 256


@dataclass(slots=True)
class _Hold:
    lease: Lease
    hold_s: float
    due_s: float | None = None
    """When it ends, on the caller's clock; None until the caller has told the time."""


class Holds:
    """Locks that outlive their requests, each under the id of its request.

    A hold is a favour and not a claim. It ends when its time is over, when somebody lets go of it,
    and when a request would have to give way or wait for nothing else because of it
    (`give_up_one`). Together holds keep at most HOLD_SHARE of the pages: a new one that leaves too
    few ends the oldest.
    """

    def __init__(self, cache: KVCacheManager, num_pages: int) -> None:
        """`num_pages` counts the scratch page."""
        self._cache = cache
        self._max_pages = int(HOLD_SHARE * (num_pages - 1))
        self._holds: dict[str, _Hold] = {}
        """The oldest first."""
        self._holders = np.zeros(num_pages, np.int32)
        """By page: how many holds keep it."""
        self.num_pages = 0
        """Kept by a hold, each counted once."""
        self.num_given_up = 0
        """Holds that ended before their time, for want of pages."""

    def __len__(self) -> int:
        return len(self._holds)

    def __iter__(self) -> Iterator[str]:
        return iter(self._holds)

    def take(
        self, request_id: str, namespace: str, token_ids: TokenIds, hold_s: float, priority: int
    ) -> None:
        """Keep what is cached of `token_ids` for `hold_s` from the next `expire` on, in place of
        what was held under this id. More than all holds may keep is not held at all."""
        self.let_go(request_id)
        lease = self._cache.open(namespace, token_ids, priority=priority)
        if not 0 < len(lease.pages) <= self._max_pages:
            self._cache.close(lease, None)
            return
        self._holds[request_id] = _Hold(lease, hold_s)
        self.num_pages += int((self._holders[lease.pages] == 0).sum())
        self._holders[lease.pages] += 1
        while self.num_pages > self._max_pages or len(self._holds) > MAX_HOLDS:
            self._give_up(next(iter(self._holds)))

    def let_go(self, request_id: str) -> None:
        """End a hold; ids that hold nothing are ignored."""
        hold = self._holds.pop(request_id, None)
        if hold is None:
            return
        pages = hold.lease.pages.copy()
        self._cache.close(hold.lease, None)
        self._holders[pages] -= 1
        self.num_pages -= int((self._holders[pages] == 0).sum())

    def let_go_all(self) -> None:
        """End every hold."""
        for request_id in list(self._holds):
            self.let_go(request_id)

    def forget_all(self) -> None:
        """The cache was reset, and with it every lock is lost."""
        self._holds.clear()
        self._holders[:] = 0
        self.num_pages = 0

    def expire(self, now_s: float) -> None:
        """End the holds whose time is over; that of new ones begins now."""
        for request_id, hold in list(self._holds.items()):
            if hold.due_s is None:
                hold.due_s = now_s + hold.hold_s
            elif hold.due_s <= now_s:
                self.let_go(request_id)

    @property
    def next_due_s(self) -> float | None:
        """When the next hold is due to end, of those whose time has begun."""
        dues = (hold.due_s for hold in self._holds.values())
        return min((due_s for due_s in dues if due_s is not None), default=None)

    def give_up_one(self, needed: Iterable[Lease]) -> bool:
        """End the oldest hold that keeps a page which none of the leases `needed` locks too.

        False if there is none: then holds are in nobody's way.
        """
        if not self._holds:
            return False
        locked = np.zeros(len(self._holders), bool)
        for lease in needed:
            locked[lease.pages[: lease.num_locked_pages]] = True
        for request_id, hold in self._holds.items():
            if not locked[hold.lease.pages].all():
                self._give_up(request_id)
                return True
        return False

    def discrepancy(self) -> str | None:
        """What does not add up, recounted from scratch; None if all does."""
        holders = np.zeros_like(self._holders)
        for request_id, hold in self._holds.items():
            holders[hold.lease.pages] += 1
            if not 0 < len(hold.lease.pages) == hold.lease.num_locked_pages:
                return f"the hold of {request_id} locks other pages than it has"
        if (holders != self._holders).any() or self.num_pages != int((holders > 0).sum()):
            return f"{self.num_pages} pages are held, recounted {int((holders > 0).sum())}"
        if self.num_pages > self._max_pages or len(self._holds) > MAX_HOLDS:
            return f"{len(self._holds)} holds keep {self.num_pages} pages"
        return None

    def _give_up(self, request_id: str) -> None:
        self.let_go(request_id)
        self.num_given_up += 1
