"""Who has a place on the device: slots, pages and locks, and the fence behind which they return."""

from __future__ import annotations

from jaxsgl.cache.manager import KVCacheManager, Lease
from jaxsgl.scheduling.request import Request, Status


class Placements:
    """Every request that holds a slot and a lease.

    A request that leaves keeps both until no step that is dispatched and not applied mentions it:
    such a step may still write its pages and its slot. Finishing, aborting and retracting all end
    this way.
    """

    def __init__(self, cache: KVCacheManager, num_slots: int) -> None:
        self._cache = cache
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self.running: list[Request] = []
        """In the order of their admission."""
        self.leaving: list[Request] = []
        """RETRACTING and FINISHING."""

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def leases(self) -> list[Lease]:
        """Of everybody who has a place."""
        return [r.lease for r in (*self.running, *self.leaving) if r.lease is not None]

    def place(self, request: Request, lease: Lease) -> None:
        """Give a waiting request a slot, and a lease that was opened for it."""
        request.lease = lease
        request.slot = self._free_slots.pop()
        request.computed = request.committed = lease.num_reused
        request.status = Status.RUNNING
        self.running.append(request)

    def leave(self, request: Request, status: Status) -> None:
        """Take a request out of the steps to come. `release_retired` gives its things back."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
            self.leaving.append(request)
        request.status = status

    def release_retired(self, oldest_in_flight: int | None) -> list[Request]:
        """Release the leaving requests that no step from `oldest_in_flight` on mentions.

        Each holds nothing any more, and is WAITING if it was retracted, DONE if it has ended.
        """
        released: list[Request] = []
        staying: list[Request] = []
        for request in self.leaving:
            mentioned = oldest_in_flight is not None and request.last_step_id >= oldest_in_flight
            (staying if mentioned else released).append(request)
        self.leaving = staying
        for request in released:
            assert request.lease is not None
            failed = request.finish is not None and request.finish.kind == "error"
            # Draws dropped after a stop or an abort were computed, but are no part of the sequence.
            valid_len = min(request.computed, request.known)
            self._cache.close(request.lease, None if failed else request.tokens[:valid_len])
            self._vacate(request)
        return released

    def lose_all(self) -> list[Request]:
        """Everything on the device is lost: reset the cache and vacate every place, at once."""
        self._cache.reset()
        vacated = sorted(self.running + self.leaving, key=lambda r: r.arrival)
        self.running.clear()
        self.leaving.clear()
        for request in vacated:
            self._vacate(request)
        self._free_slots = list(range(self._num_slots - 1, -1, -1))  # whatever was in it
        return vacated

    def discrepancy(self, *, num_holds: int) -> str | None:
        """What does not add up, recounted from scratch; None if all does. `num_holds` locks are of
        nobody here."""
        placed = self.running + self.leaving
        slots = sorted(self._free_slots + [r.slot for r in placed])
        if slots != list(range(self._num_slots)):
            return f"slots held and free are {slots}"
        for r in placed:
            if r.lease is None or r.lease.capacity_len < r.computed:
                return f"{r.request_id} has KV beyond its pages"
            if not 0 <= r.committed <= r.computed <= r.known + r.pending:
                return f"{r.request_id}: {r.committed=} {r.computed=} {r.known=} {r.pending=}"
            if r.published and r.committed < r.prompt_len:
                return f"{r.request_id} shares KV that no applied step has computed"
        if self._cache.num_locks != len(placed) + num_holds:
            return f"{self._cache.num_locks} locks for {len(placed)} requests, {num_holds} holds"
        if not placed and self._cache.num_private:
            return f"{self._cache.num_private} pages held by nobody"
        return None

    def _vacate(self, request: Request) -> None:
        self._free_slots.append(request.slot)
        request.slot = -1
        request.lease = None
        request.computed = request.committed = request.pending = 0
        if request.prompt_logprobs is not None:
            request.num_scored = len(request.prompt_logprobs)
        request.published = False
        request.status = Status.WAITING if request.live else Status.DONE
