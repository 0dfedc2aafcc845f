"""Chooses the rows of one step: who goes on, who joins, who must give way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.scheduling.admission import AdmissionController
from jaxsgl.scheduling.chains import Chains
from jaxsgl.scheduling.fair_queue import FairQueue
from jaxsgl.scheduling.holds import Holds
from jaxsgl.scheduling.pacing import Pace
from jaxsgl.scheduling.placements import Placements
from jaxsgl.scheduling.plan_builder import PlanBuilder
from jaxsgl.scheduling.policies import WINDOW
from jaxsgl.scheduling.prefix_sharing import is_computing, is_worth_waiting
from jaxsgl.scheduling.request import Request, Status
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.scheduling.tenant_quota import TenantQuota
from jaxsgl.step import StepLimits


class Planner:
    """One token budget for all: "mixed chunks" and "prefill first" are two ways to spend it."""

    def __init__(
        self,
        cache: KVCacheManager,
        places: Placements,
        holds: Holds,
        waiting: FairQueue,
        settings: SchedulingSettings,
        *,
        limits: StepLimits,
        pace: Pace | None,
        chains: Chains,
        retract: Callable[[Request], None],
        admitted: Callable[[Request, int], None],
    ) -> None:
        """`retract` makes a running request leave, at once if no step mentions it; `admitted` is
        told of each request that got a place, with the tokens it reuses."""
        self._cache = cache
        self._places = places
        self._holds = holds
        self._waiting = waiting
        self._settings = settings
        self._pace = pace
        self._chains = chains
        self._retract = retract
        self._admitted = admitted
        self._admission = AdmissionController(limits.page_size)
        self._quota = TenantQuota(
            cache,
            places,
            self._admission,
            settings.tenant_quota,
            num_pages=limits.num_pages - 1,
            num_slots=limits.num_slots,
        )

    def fill(self, builder: PlanBuilder, *, idle: bool) -> None:
        """Add to `builder` every row that is to run; `idle` says that no step is in flight."""
        if self._settings.policy == "priority" or self._quota.is_set:
            self._make_way()
        is_filled = self._chains.are_there and self._fill_chain(builder)
        if not is_filled and self._settings.mixed_chunks:
            self._fill_mixed(builder, idle)
        elif not is_filled:
            self._fill_prefill_first(builder, idle)
        self._admission.after_step()

    def _make_way(self) -> None:
        """Retract a running request if one waits that has no room and more right to it.

        One a step, and none while the last one's things have not come back.
        """
        if not len(self._waiting) or self._places.leaving:
            return
        request = self._first_welcome()
        if request is None or (self._places.num_free_slots and self._has_pages_for(request)):
            return
        victim = self._less_urgent(request) or self._in_excess(request)
        if victim is None:
            return
        while self._places.num_free_slots and self._holds.give_up_one(self._places.leases):
            if self._has_pages_for(request):
                return
        self._retract(victim)

    def _first_welcome(self) -> Request | None:
        barred: set[str] = set()
        for request in self._waiting.in_order():
            if request.tenant not in barred:
                if self._may_join(request):
                    return request
                barred.add(request.tenant)
        return None

    def _less_urgent(self, request: Request) -> Request | None:
        """Under the priority policy, the running request that a waiting one of the same tenant
        may displace."""
        if self._settings.policy != "priority":
            return None
        limit = request.priority - self._settings.preemption_threshold
        running = self._places.running
        victims = [r for r in running if r.tenant == request.tenant and r.priority < limit]
        return _least_urgent(victims) if victims else None

    def _in_excess(self, request: Request) -> Request | None:
        """The running request that a waiting one of another tenant, itself within its quota, may
        displace."""
        if not self._quota.allows(request):
            return None
        others = [r for r in self._places.running if r.tenant != request.tenant]
        return self._quota.victim(others)

    def _may_join(self, request: Request) -> bool:
        """A tenant's quota holds only while others wait."""
        return self._waiting.num_tenants < 2 or self._quota.allows(request)

    def _has_pages_for(self, request: Request) -> bool:
        match_len = self._cache.match_len(request.namespace, request.known_ids())
        num_needed = self._admission.num_needed(request) - self._admission.num_pages(match_len)
        num_reserved = self._admission.num_reserved(self._places.running)
        return num_needed <= self._cache.num_free + self._cache.num_cached - num_reserved

    def _fill_chain(self, builder: PlanBuilder) -> bool:
        """Let every row draw several tokens, if none needs the host meanwhile and nobody else could
        be in the step. Whether that was done."""
        if len(self._waiting) and self._places.num_free_slots:
            return False
        ones, many = self._wanting()
        if many or not all(request.draws_alone for request in self._places.running):
            return False
        num_draws = self._chains.num_draws(ones, self._cache.num_free + self._cache.num_cached)
        if num_draws is None:
            return False
        for request, num_tokens in zip(ones, num_draws, strict=True):
            assert request.lease is not None
            held = len(request.lease.pages)
            new_pages = self._cache.grow(request.lease, request.computed + num_tokens)
            assert new_pages is not None, "pages that are free or cached were counted"
            if len(new_pages):
                builder.edit_pages(request.slot, held, new_pages)
            builder.add_chain(request, num_tokens)
        return True

    def _fill_mixed(self, builder: PlanBuilder, idle: bool) -> None:
        """Single tokens first, so that no stream stalls; what is left goes to prompts."""
        ones, many = self._wanting()
        short = self._continue_rows(builder, ones)
        if self._pace is not None and builder.requests and (many or len(self._waiting)):
            self._pace.bound(builder, many[0].computed if many else 0)
        builder.fit(self._num_wanted(builder, many))
        short |= self._continue_rows(builder, many)
        # While pages are short nobody joins, unless nothing else is left to do.
        if not short or (not builder.requests and idle):
            self._admit_waiting(builder)

    def _num_wanted(self, builder: PlanBuilder, many: list[Request]) -> int:
        """Tokens of prompts that could be in this step, if none of those who wait is cached."""
        num_wanted = sum(request.num_wanted for request in many)
        for request in islice(self._waiting, self._places.num_free_slots):
            if num_wanted >= builder.tokens_left:
                break
            num_wanted += request.known
        return num_wanted

    def _fill_prefill_first(self, builder: PlanBuilder, idle: bool) -> None:
        """Prompts alone while there are any; only then single tokens."""
        ones, many = self._wanting()
        short = self._continue_rows(builder, many)
        if not short:
            self._admit_waiting(builder)
        if builder.requests:
            return
        short |= self._continue_rows(builder, ones)
        if short and not builder.requests and idle:
            self._admit_waiting(builder)

    def _wanting(self) -> tuple[list[Request], list[Request]]:
        """Running requests that want a token, those that want a single one apart."""
        ones: list[Request] = []
        many: list[Request] = []
        for request in self._places.running:
            wanted = request.num_wanted
            if wanted == 1 and not request.is_late:
                ones.append(request)
            elif wanted > 1:
                many.append(request)
        return ones, many

    def _continue_rows(self, builder: PlanBuilder, requests: list[Request]) -> bool:
        """Add running requests to the step as far as there is room. Whether pages ran out."""
        short = False
        for request in requests:
            num_tokens = builder.num_takeable(request)
            if num_tokens == 0 or request.status is not Status.RUNNING:
                continue
            assert request.lease is not None
            held = len(request.lease.pages)
            new_pages = self._grow(builder, request, num_tokens)
            if new_pages is None:
                short = True
                continue
            if len(new_pages):
                builder.edit_pages(request.slot, held, new_pages)
            builder.add_row(request, num_tokens)
        return short

    def _grow(
        self, builder: PlanBuilder, request: Request, num_tokens: int
    ) -> NDArray[np.int32] | None:
        """Pages for the request's next tokens, if need be at the cost of holds, then of later
        arrivals."""
        assert request.lease is not None
        while True:
            new_pages = self._cache.grow(request.lease, request.computed + num_tokens)
            if new_pages is not None:
                return new_pages
            if self._places.leaving:
                return None  # Their pages are about to come back.
            if self._holds.give_up_one(self._places.leases):
                continue
            candidates = [r for r in self._places.running if r not in builder.requests]
            self._admission.after_retraction(self._places.running)
            self._retract(self._quota.victim(candidates) or _least_urgent_of_latest(candidates))
            if request.status is not Status.RUNNING:
                return None

    def _admit_waiting(self, builder: PlanBuilder) -> None:
        """Place waiting requests as far as slots, this step and the estimate of pages allow."""
        if not (len(self._waiting) and self._places.num_free_slots and builder.rows_left):
            return
        num_reserved = self._admission.num_reserved(self._places.running)
        prefilling = [r for r in self._places.running if is_computing(r)]
        in_order = self._waiting.in_order()
        if self._cache.num_free < self._admission.num_needed(in_order[0]):
            self._keep_what_is_waited_for(in_order)
        barred: set[str] = set()
        for request in in_order:
            if builder.num_takeable(request) == 0:
                return
            if request.tenant in barred:
                continue
            if (
                prefilling
                and self._settings.share_prefixes
                and is_worth_waiting(
                    request,
                    self._cache.match_len(request.namespace, request.known_ids()),
                    prefilling,
                )
            ):
                continue
            if not self._may_join(request):
                barred.add(request.tenant)
                continue
            num_more = self._place(builder, request, num_reserved)
            if num_more is None:
                return
            num_reserved += num_more
            if is_computing(request):
                prefilling.append(request)
            self._waiting.admit(request)

    def _keep_what_is_waited_for(self, in_order: list[Request]) -> None:
        """Before pages are evicted: a prefix that somebody waits for is worth more than one that
        was used later and that nobody may want again."""
        for request in reversed(in_order[:WINDOW]):
            self._cache.touch(request.namespace, request.known_ids())

    def _place(self, builder: PlanBuilder, request: Request, num_reserved: int) -> int | None:
        """Give a waiting request slot, lock and first pages, and its row in this step.

        Returns the pages it is still expected to want; None if there is no room for it now.
        """
        if not self._places.num_free_slots:
            return None
        lease = self._cache.open(
            request.namespace,
            request.known_ids(),
            max_reuse=request.max_reuse_len,
            priority=request.priority,
        )
        num_needed = self._admission.num_needed(request) - len(lease.pages)
        room = self._cache.num_free + self._cache.num_cached - num_reserved
        alone = not self._places.running and not self._places.leaving
        if num_needed <= room or alone:
            num_tokens = builder.num_takeable(request, computed=lease.num_reused)
            new_pages = self._cache.grow(lease, lease.num_reused + num_tokens)
            # Others end, and their pages come back; nobody waits for holds alone.
            while new_pages is None and alone and self._holds.give_up_one([lease]):
                new_pages = self._cache.grow(lease, lease.num_reused + num_tokens)
            if new_pages is not None and num_tokens:
                self._places.place(request, lease)
                self._admitted(request, lease.num_reused)
                builder.open_slot(request, lease.pages)
                builder.add_row(request, num_tokens)
                return num_needed - len(new_pages)
        self._cache.close(lease, None)
        return None


def _least_urgent(requests: list[Request]) -> Request:
    return min(requests, key=lambda r: (r.priority, -r.arrival))


def _least_urgent_of_latest(requests: list[Request]) -> Request:
    """Of the tenant of the latest: nobody's urgency is at the cost of another tenant, and in the
    end the oldest always gets through."""
    tenant = max(requests, key=lambda r: r.arrival).tenant
    return _least_urgent([r for r in requests if r.tenant == tenant])
