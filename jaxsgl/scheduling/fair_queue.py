"""Everybody who waits, tenant by tenant: who was served least goes first.

The rule is that of "Fairness in Serving Large Language Models" (arXiv 2401.00588), section 4: a
counter of served tokens for each tenant, lifted when the tenant begins to wait, so that nobody
saves up for a burst by having asked for nothing. Prompt tokens found in the cache cost nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain

from jaxsgl.scheduling.policies import WINDOW, MatchLen, Policy
from jaxsgl.scheduling.request import Request
from jaxsgl.scheduling.waiting_queue import WaitingQueue

GENERATED_WEIGHT = 3
"""A generated token counts for so many tokens of a prompt. On an H100 a full batch of decode rows
takes about three times as long per token as a prompt does."""


class FairQueue:
    """Within a tenant the policy decides, between tenants what each was served so far.

    Of two tenants that wait all the time neither is served more than the other by more than about
    one request and what the running ones still generate, however many requests each has queued.
    There are as many counters as there were tenants.
    """

    def __init__(self, policy: Policy, match_len: MatchLen) -> None:
        self._policy = policy
        self._match_len = match_len
        self._queues: dict[str, WaitingQueue] = {}
        """Those of tenants that have somebody waiting."""
        self._served: defaultdict[str, int] = defaultdict(int)
        """By tenant, in tokens of a prompt."""
        self._last = ""
        """The tenant that was the last to have nobody waiting any more."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Request]:
        """Tenant by tenant, oldest first."""
        return chain.from_iterable(self._queues.values())

    @property
    def num_tenants(self) -> int:
        """Tenants that wait."""
        return len(self._queues)

    def charge_prompt(self, tenant: str, num_tokens: int) -> None:
        """So many tokens of a prompt of his are being computed."""
        self._served[tenant] += num_tokens

    def charge_generated(self, tenant: str, num_tokens: int) -> None:
        self._served[tenant] += GENERATED_WEIGHT * num_tokens

    def add(self, request: Request) -> None:
        queue = self._queues.get(request.tenant)
        if queue is None:
            self._lift(request.tenant)
            queue = self._queues[request.tenant] = WaitingQueue(self._policy, self._match_len)
        queue.add(request)

    def remove(self, request: Request) -> None:
        """Raises ValueError for one that does not wait."""
        queue = self._queue_of(request)
        queue.remove(request)
        self._drop_if_empty(request.tenant)

    def admit(self, request: Request) -> None:
        """Remove a request that got its place; those of its tenant it overtook grow older."""
        self._queue_of(request).admit(request)
        self._drop_if_empty(request.tenant)

    def in_order(self) -> list[Request]:
        """Everyone, those to be admitted first first, as if each admitted prompt were computed
        whole."""
        queues = self._queues
        if len(queues) == 1:
            return next(iter(queues.values())).in_order()
        turns: list[tuple[int, int, int, Request]] = []
        for tenant, queue in queues.items():
            served, num_waiting = self._served[tenant], len(queue)
            for request in queue.in_order(WINDOW // len(queues) + 1):
                # Among equals whoever waits with less.
                turns.append((served, num_waiting, request.arrival, request))
                served += request.known
        turns.sort(key=lambda turn: turn[:3])
        return [turn[3] for turn in turns]

    def _lift(self, tenant: str) -> None:
        """Give up what the tenant did not ask for while others waited."""
        others = [self._served[other] for other in self._queues]
        level = min(others) if others else self._served[self._last]
        self._served[tenant] = max(self._served[tenant], level)

    def _queue_of(self, request: Request) -> WaitingQueue:
        if request.tenant not in self._queues:
            raise ValueError(f"{request.request_id} does not wait")
        return self._queues[request.tenant]

    def _drop_if_empty(self, tenant: str) -> None:
        if not len(self._queues[tenant]):
            del self._queues[tenant]
            self._last = tenant
