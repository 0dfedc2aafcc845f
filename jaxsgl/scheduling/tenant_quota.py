"""What one tenant's running requests may take of pages and slots while others wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.scheduling.admission import AdmissionController
from jaxsgl.scheduling.placements import Placements
from jaxsgl.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Claim:
    """Of one tenant."""

    pages: int
    """Held by its running requests, shared ones counted once, and what these will still ask for."""
    slots: int


class TenantQuota:
    """Pure arithmetic over who runs. Without a `share` nobody is ever above."""

    def __init__(
        self,
        cache: KVCacheManager,
        places: Placements,
        admission: AdmissionController,
        share: float | None,
        *,
        num_pages: int,
        num_slots: int,
    ) -> None:
        self._cache = cache
        self._places = places
        self._admission = admission
        self._share = share
        self._max_pages = int((share or 0.0) * num_pages)
        self._max_slots = max(1, int((share or 0.0) * num_slots))

    @property
    def is_set(self) -> bool:
        return self._share is not None

    def claim(self, tenant: str) -> Claim:
        running = [r for r in self._places.running if r.tenant == tenant]
        leases = [r.lease for r in running if r.lease is not None]
        own = sum(len(lease.pages) - lease.num_locked_pages for lease in leases)
        shared = sum(map(self._cache.num_protected_in, {r.namespace for r in running}))
        return Claim(own + shared + self._admission.num_reserved(running), len(running))

    def allows(self, request: Request) -> bool:
        """Whether its tenant stays within the quota with it. A tenant of which nothing runs may
        always have one."""
        if not self.is_set:
            return True
        claim = self.claim(request.tenant)
        pages = claim.pages + self._admission.num_pages(request.known)
        return not claim.slots or (pages <= self._max_pages and claim.slots < self._max_slots)

    def victim(self, candidates: Sequence[Request]) -> Request | None:
        """The one of them to give way first: of the tenant furthest above its quota the least
        urgent, latest. None if nobody is above.

        The oldest running request of a tenant never is, so that each gets through in the end.
        """
        if not self.is_set:
            return None
        by_tenant: dict[str, list[Request]] = {}
        for request in self._places.running:
            by_tenant.setdefault(request.tenant, []).append(request)
        worst, excess = None, 0.0
        for tenant, running in by_tenant.items():
            oldest = min(running, key=lambda r: r.arrival)
            giving = [r for r in candidates if r.tenant == tenant and r is not oldest]
            over = self._excess(self.claim(tenant))
            if giving and over > excess:
                worst, excess = min(giving, key=lambda r: (r.priority, -r.arrival)), over
        return worst

    def _excess(self, claim: Claim) -> float:
        """How far above the quota, as a share of it."""
        over_pages = (claim.pages - self._max_pages) / max(1, self._max_pages)
        return max(0.0, over_pages, (claim.slots - self._max_slots) / self._max_slots)
