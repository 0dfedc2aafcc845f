"""All seats of a pool, and what is asked of them as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxsgl.actors.messages import Ready
from jaxsgl.interface import EngineStats, Unavailable, UnknownReplica
from jaxsgl.replicas.capacity import Share
from jaxsgl.replicas.proxy import ReplicaProxy
from jaxsgl.replicas.seat import UNHEALTHY, Seat, SeatState
from jaxsgl.replicas.totals import counters_of, total

STOPPING = "the server is stopping"


class Seats:
    """In the order of their replica ids."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.is_draining = False
        """Set by the owner: nothing new is taken any more."""
        self.is_stopped = False
        """Set by the owner: they are being stopped, or are."""
        self._seats = tuple(seats)
        self._retired = EngineStats()
        """Counters of lives that are over."""

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._seats)

    def of(self, replica_id: int) -> Seat:
        """Raises UnknownReplica."""
        if not 0 <= replica_id < len(self._seats):
            raise UnknownReplica(f"there is no replica {replica_id}")
        return self._seats[replica_id]

    def up(self) -> list[Seat]:
        """At least one. Raises Unavailable."""
        if self.is_draining:
            raise Unavailable(STOPPING)
        up = [seat for seat in self._seats if seat.is_up]
        if not up:
            raise Unavailable("no replica is ready")
        return up

    def up_proxies(self) -> list[ReplicaProxy]:
        """As `up`."""
        return [proxy_of(seat) for seat in self.up()]

    def smallest_told(self) -> Ready:
        """What the replica with the least room said, of those that were ever ready."""
        told = [seat.told for seat in self._seats if seat.told is not None]
        if not told:
            raise Unavailable("no replica is ready")
        return min(told, key=lambda ready: ready.max_prompt_len)

    def shares(self) -> list[Share]:
        return [
            Share(seat.spec.devices, seat.num_pages, seat.state not in UNHEALTHY)
            for seat in self._seats
        ]

    @property
    def num_unhealthy(self) -> int:
        """Devices in replicas that died and are not ready again."""
        return sum(len(seat.spec.devices) for seat in self._seats if seat.state in UNHEALTHY)

    def retire(self, seat: Seat) -> None:
        """Keep the counters of a life that is over."""
        self._retired = total((self._retired, counters_of(seat.load.stats)))

    def stats(self) -> EngineStats:
        """Of all lives together."""
        return total((self._retired, *map(_reading, self._seats)))


def proxy_of(seat: Seat) -> ReplicaProxy:
    """Of a seat that is up."""
    assert seat.proxy is not None
    return seat.proxy


def _reading(seat: Seat) -> EngineStats:
    """Of a replica that is gone only the counters."""
    gone = seat.state in (*UNHEALTHY, SeatState.STOPPED)
    return counters_of(seat.load.stats) if gone else seat.load.stats
