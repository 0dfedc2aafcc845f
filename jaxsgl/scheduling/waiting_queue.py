"""One tenant's requests that hold nothing yet, and the order in which they are offered a place."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from jaxsgl.scheduling.policies import WINDOW, MatchLen, Policy
from jaxsgl.scheduling.request import Request

MIN_OVERTAKEN = 8
"""A request may be overtaken by as many later arrivals as waited before it when it came, and by
this many more; then it goes first, whatever the policy says. Its wait is thus about twice what it
would have been in the order of arrival, at worst."""


class WaitingQueue:
    """Sorted by arrival; a policy decides the order of admission, aging that nobody starves.

    A request that was retracted keeps its arrival, and so comes back ahead of what came after it.
    """

    def __init__(self, policy: Policy, match_len: MatchLen) -> None:
        self._policy = policy
        self._match_len = match_len
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """Oldest first."""
        return iter(self._requests)

    def add(self, request: Request) -> None:
        request.max_overtaken = len(self._requests) + MIN_OVERTAKEN
        bisect.insort(self._requests, request, key=_arrival)

    def remove(self, request: Request) -> None:
        del self._requests[self._index(request)]

    def in_order(self, window: int = WINDOW) -> list[Request]:
        """Everyone, those to be admitted first first. `window` is the policy's."""
        aged = [r for r in self._requests if r.num_overtaken >= r.max_overtaken]
        if not aged:
            return self._policy(self._requests.copy(), self._match_len, window)
        rest = [r for r in self._requests if r.num_overtaken < r.max_overtaken]
        aged = self._policy(aged, self._match_len, window)
        return aged + self._policy(rest, self._match_len, window)

    def admit(self, request: Request) -> None:
        """Remove a request that got its place; those it overtook grow older."""
        index = self._index(request)
        for older in self._requests[:index]:
            if older.priority >= request.priority:
                older.num_overtaken += 1
        del self._requests[index]

    def _index(self, request: Request) -> int:
        index = bisect.bisect_left(self._requests, request.arrival, key=_arrival)
        if index == len(self._requests) or self._requests[index] is not request:
            raise ValueError(f"{request.request_id} does not wait")
        return index


def _arrival(request: Request) -> int:
    return request.arrival
