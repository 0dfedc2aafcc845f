"""Finds each request a place at a replica, and remembers what is where."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from jaxsgl.actors.output_stream import OutputStream
from jaxsgl.cache.node import TOKEN_BYTES
from jaxsgl.cache.page_hash import page_hashes, root_hash
from jaxsgl.interface import DeadlineExceeded, Unavailable
from jaxsgl.replicas.bell import Bell
from jaxsgl.replicas.journey import Journey
from jaxsgl.replicas.proxy import ReplicaProxy
from jaxsgl.replicas.routing.load import Guard, Job
from jaxsgl.replicas.routing.policies import Policy
from jaxsgl.replicas.seat import COMING, Seat
from jaxsgl.token_ids import token_array


class Place:
    """A request at a replica. `leave` it in the end."""

    def __init__(
        self,
        journey: Journey,
        seat: Seat,
        proxy: ReplicaProxy,
        stream: OutputStream,
        guard: Guard,
        begin_s: float,
        *,
        follows_latency: bool,
    ) -> None:
        self.journey = journey
        self.seat = seat
        self.proxy = proxy
        self.stream = stream
        self.guard = guard
        self._load = seat.load
        self._begin_s = begin_s
        self._follows_latency = follows_latency
        self._first_s: float | None = None
        self._last_s = begin_s

    def saw_tokens(self, num_tokens: int, now_s: float) -> None:
        """Its reader got so many."""
        load, latency = self._load, self._load.latency
        if self._first_s is None:
            self.guard.prefilled(now_s)
            self._first_s = now_s
            if self._follows_latency:
                expected_s = self.guard.uncached_len * load.prefill_token_s
                latency.first_token(now_s - self._begin_s, expected_s, now_s)
        elif self._follows_latency:
            latency.later_tokens(now_s - self._last_s, num_tokens, now_s)
        self._last_s = now_s

    def saw_end(self, now_s: float) -> None:
        """Its answer is complete."""
        if self._first_s is not None:
            self._load.latency.answered(now_s - self._first_s)


class Dispatcher:
    """Requests go where the policy says, except suspects: those have a replica of their own, one
    suspect at a time."""

    def __init__(
        self,
        seats: Sequence[Seat],
        policy: Policy,
        bell: Bell,
        *,
        names_prefixes: bool,
        follows_latency: bool,
        clock: Callable[[], float],
    ) -> None:
        """`bell` rings when there may be a place where there was none. `names_prefixes`: the policy
        wants to know what requests begin with. `follows_latency`: loads tell what clients waited
        for tokens."""
        self._seats = seats
        self._policy = policy
        self._bell = bell
        self._names_prefixes = names_prefixes
        self._follows_latency = follows_latency
        self._clock = clock
        self._places: dict[Journey, Place] = {}
        self._reserved: tuple[Journey, Seat] | None = None
        """A suspect, and the seat that takes nothing else until it has been there."""

    def at(self, seat: Seat) -> list[Journey]:
        """The requests that are at a replica."""
        return [journey for journey, place in self._places.items() if place.seat is seat]

    def place_of(self, journey: Journey) -> Place | None:
        return self._places.get(journey)

    async def find(self, journey: Journey, *, patient: bool) -> Place | None:
        """A place at a replica that can take the request now; None if it was aborted meanwhile.

        Waits while none can: a patient one also while no replica is ready but some will be. Raises
        Unavailable when there is nothing to wait for, DeadlineExceeded, and InvalidRequest for an
        id in use.
        """
        try:
            async with asyncio.timeout(self._rest_s(journey)):
                while not journey.was_aborted:
                    seat = self._choose(journey)
                    if seat is not None:
                        place = await self._enter(journey, seat)
                        if place is not None:
                            return place
                    else:
                        self._check_hope(patient)
                        await self._bell.wait()
        except TimeoutError:
            message = "the request's deadline has passed"
            raise DeadlineExceeded(message, code="deadline_exceeded") from None
        finally:
            if journey not in self._places:
                self._unreserve(journey)
        return None

    def leave(self, place: Place) -> None:
        """The request has ended there, or moves on. Idempotent."""
        place.guard.release()
        place.proxy.leave(place.journey.request_id)
        if self._places.get(place.journey) is place:
            del self._places[place.journey]
            self._unreserve(place.journey)
            self._bell.ring()

    def _rest_s(self, journey: Journey) -> float | None:
        return None if journey.deadline_s is None else journey.deadline_s - self._clock()

    def _choose(self, journey: Journey) -> Seat | None:
        """Where the request can go now, if anywhere."""
        if journey.is_suspect:
            return self._own_seat(journey)
        reserved = None if self._reserved is None else self._reserved[1]
        open_seats = [seat for seat in self._seats if seat.is_up and seat is not reserved]
        if len(open_seats) < 2:
            return open_seats[0] if open_seats else None
        job = self._job(journey, open_seats[0])
        loads = [seat.load for seat in open_seats]
        chosen = self._policy.choose(job, loads, self._clock())
        return open_seats[loads.index(chosen)]

    def _own_seat(self, journey: Journey) -> Seat | None:
        """The seat that is reserved for a suspect, once it is empty."""
        if self._reserved is None:
            up = [seat for seat in self._seats if seat.is_up]
            if not up:
                return None
            self._reserved = (journey, min(up, key=lambda seat: seat.num_open))
        suspect, seat = self._reserved
        if suspect is not journey:
            return None
        if not seat.is_up:  # it died, or is to be stopped, before it was empty
            self._reserved = None
            return self._own_seat(journey)
        return seat if seat.num_open == seat.load.num_in_flight == 0 else None

    def _unreserve(self, journey: Journey) -> None:
        if self._reserved is not None and self._reserved[0] is journey:
            self._reserved = None
            self._bell.ring()

    def _check_hope(self, patient: bool) -> None:
        if any(seat.is_up for seat in self._seats):
            return
        if not patient or not any(seat.state in COMING for seat in self._seats):
            raise Unavailable("no replica is ready")

    async def _enter(self, journey: Journey, seat: Seat) -> Place | None:
        """Send the request to the replica; None if that is not ready any more."""
        proxy = seat.proxy
        assert proxy is not None
        guard = Guard(seat.load, self._job(journey, seat))
        try:
            await proxy.room()
            if not proxy.is_ready or journey.was_aborted:
                guard.release()
                return None
            now_s = self._clock()
            stream = proxy.admit(journey.next_admit(now_s))
        except BaseException:
            guard.release()
            raise
        journey.is_alone = journey.is_suspect
        follows_latency = self._follows_latency
        place = Place(journey, seat, proxy, stream, guard, now_s, follows_latency=follows_latency)
        self._places[journey] = place
        return place

    def _job(self, journey: Journey, seat: Seat) -> Job:
        page_size = 0 if seat.told is None else seat.told.page_size
        if not (page_size and self._names_prefixes):
            return Job(journey.known_len, page_size)
        if journey.prefix_names is None:
            admit = journey.admit
            root = root_hash(admit.cache_namespace)
            tokens = token_array(admit.prompt_ids).tobytes()
            journey.prefix_names = tuple(page_hashes(root, tokens, page_size * TOKEN_BYTES))
        return Job(journey.known_len, page_size, journey.prefix_names)
