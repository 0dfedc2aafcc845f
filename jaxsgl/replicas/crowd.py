"""How many requests each tenant has here. Pure."""

from __future__ import annotations

from collections import Counter


class Crowd:
    """Each request joins once and leaves once."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        """Of tenants that have any."""

    def join(self, tenant: str) -> None:
        self._counts[tenant] += 1

    def leave(self, tenant: str) -> None:
        self._counts[tenant] -= 1
        if not self._counts[tenant]:
            del self._counts[tenant]

    def has_its_share(self, tenant: str, num_places: int) -> bool:
        """Whether a tenant has as many places as all who are here could have, itself among them.

        If nobody beyond his share is let in once all places are taken, there are never more than
        twice as many requests as places.
        """
        num_tenants = len(self._counts.keys() | {tenant})
        return num_tenants == 1 or self._counts[tenant] >= num_places // num_tenants
