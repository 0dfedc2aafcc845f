"""Which replica was asked to hold which prompt."""

from __future__ import annotations

from collections.abc import Callable

from jaxsgl.replicas.proxy import ReplicaProxy
from jaxsgl.replicas.request_table import named


class HeldPrompts:
    """As far as the front knows: a replica may have given one up. Entries go when somebody lets go
    of them, or when their time is over and another one comes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[str, tuple[ReplicaProxy, float]] = {}
        """By request: who holds, and until when at most."""

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def add(self, request_id: str, proxy: ReplicaProxy, hold_s: float) -> None:
        """The request was answered there a moment ago."""
        now_s = self._clock()
        self._held = {key: held for key, held in self._held.items() if held[1] > now_s}
        before = self._held.pop(request_id, None)
        if before is not None and before[0] is not proxy:
            before[0].let_go(request_id)
        self._held[request_id] = proxy, now_s + hold_s

    def let_go(self, name: str) -> None:
        """Of the request of this id, or those whose id is this, a hyphen and more."""
        for request_id in named(list(self._held), name):
            proxy, _ = self._held.pop(request_id)
            proxy.let_go(request_id)

    def let_go_all(self) -> None:
        for request_id in list(self._held):
            self.let_go(request_id)
