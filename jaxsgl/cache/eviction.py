"""The order in which cached pages are given up."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, ...]
"""How much a page is worth keeping; the smallest goes first."""


class Lru:
    """Least recently used first, by a logical clock that ticks once per use.

    Worth is kept per page, not per tree node, so that nodes can be split, extended and trimmed at
    will. A page's key never falls while it stays in the cache.
    """

    def __init__(self, num_pages: int) -> None:
        self.last_use: NDArray[np.int64] = np.zeros(num_pages, dtype=np.int64)
        self.ranks: tuple[NDArray[np.int64], ...] = (self.last_use,)
        """The parts of a key, the most significant first, each indexed by page."""
        self._clock = 0

    def add(self, pages: NDArray[np.int32], priority: int) -> None:
        """Pages enter the cache."""
        self.refresh(pages)

    def use(self, pages: NDArray[np.int32], priority: int) -> None:
        """A request reuses cached pages."""
        self.refresh(pages)

    def refresh(self, pages: NDArray[np.int32]) -> None:
        """A request that used cached pages lets go of them: now is their last use."""
        self._clock += 1
        self.last_use[pages] = self._clock

    def key(self, page: int) -> Key:
        return tuple([int(rank[page]) for rank in self.ranks])

    def num_alike(self, pages: NDArray[np.int32]) -> int:
        """How many pages at the end of `pages` have the key of the last one."""
        alike = len(pages)
        for rank in self.ranks:
            values = rank[pages]
            differing = np.flatnonzero(values != values[-1])
            if len(differing):
                alike = min(alike, len(pages) - 1 - int(differing[-1]))
        return alike


class Lfu(Lru):
    """Fewest uses first; among equals, least recently used first."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages)
        self.num_uses: NDArray[np.int64] = np.zeros(num_pages, dtype=np.int64)
        self.ranks = (self.num_uses, self.last_use)

    def add(self, pages: NDArray[np.int32], priority: int) -> None:
        super().add(pages, priority)
        self.num_uses[pages] = 1

    def use(self, pages: NDArray[np.int32], priority: int) -> None:
        super().use(pages, priority)
        self.num_uses[pages] += 1


class LowestPriority(Lru):
    """Those of the least urgent users first; among equals, least recently used first."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages)
        self.priority: NDArray[np.int64] = np.zeros(num_pages, dtype=np.int64)
        self.ranks = (self.priority, self.last_use)

    def add(self, pages: NDArray[np.int32], priority: int) -> None:
        super().add(pages, priority)
        self.priority[pages] = priority

    def use(self, pages: NDArray[np.int32], priority: int) -> None:
        super().use(pages, priority)
        self.priority[pages] = np.maximum(self.priority[pages], priority)


POLICIES: Mapping[str, type[Lru]] = MappingProxyType(
    {"lfu": Lfu, "lru": Lru, "priority": LowestPriority}
)


def make_policy(name: str, num_pages: int) -> Lru:
    """Raises ValueError, listing the known names, for an unknown one."""
    if name not in POLICIES:
        raise ValueError(f"unknown eviction policy {name!r}; known are {', '.join(POLICIES)}")
    return POLICIES[name](num_pages)


class EvictionQueue[T: Hashable]:
    """Candidates in the order of their keys; outdated heap entries are skipped as they surface.

    A candidate is queued under the smallest key it was offered with since it was last popped;
    whoever pops it compares that with its key of the moment and offers it again if the key has
    grown.
    """

    def __init__(self) -> None:
        self._queued: dict[T, Key] = {}
        self._heap: list[tuple[Key, int, T]] = []
        self._num_offers = 0

    def offer(self, candidate: T, key: Key) -> None:
        """Queue a candidate, unless it already is under a key as small."""
        queued = self._queued.get(candidate)
        if queued is not None and queued <= key:
            return
        self._queued[candidate] = key
        self._num_offers += 1
        # The running number settles ties in the order of arrival, and keeps candidates from being
        # compared.
        heapq.heappush(self._heap, (key, self._num_offers, candidate))
        self._drop_outdated()

    def forget(self, candidate: T) -> None:
        """The candidate is gone; nothing happens if it was not queued."""
        self._queued.pop(candidate, None)
        self._drop_outdated()

    def pop(self) -> tuple[T, Key] | None:
        """Take out the candidate queued under the smallest key; None if there is none."""
        while self._heap:
            key, _, candidate = heapq.heappop(self._heap)
            if self._queued.get(candidate) == key:
                del self._queued[candidate]
                return candidate, key
        return None

    def queued_key(self, candidate: T) -> Key | None:
        """The key a candidate waits under; None if it does not wait."""
        return self._queued.get(candidate)

    def _drop_outdated(self) -> None:
        """Rebuild the heap when most of it is outdated, which bounds its size."""
        if len(self._heap) > 2 * len(self._queued) + 64:
            self._heap = [entry for entry in self._heap if self._queued.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
