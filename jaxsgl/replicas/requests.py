"""Every request that a pool has accepted, from the prompt to the end of its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from jaxsgl.actors.service import ServiceDead
from jaxsgl.actors.text_actor import TextActor, prompt_param
from jaxsgl.config import EngineConfig
from jaxsgl.interface import (
    DeadlineExceeded,
    Delta,
    Finish,
    GenerateRequest,
    InvalidRequest,
    Prompt,
    QueueFull,
    Unavailable,
    check_hold,
    check_sampling,
)
from jaxsgl.replicas.admission import SeedStream, admission
from jaxsgl.replicas.bell import Bell
from jaxsgl.replicas.crowd import Crowd
from jaxsgl.replicas.dispatch import Dispatcher, Place
from jaxsgl.replicas.entrance import Entrance
from jaxsgl.replicas.held import HeldPrompts
from jaxsgl.replicas.journey import Journey, Quarantine, Quarantined
from jaxsgl.replicas.proxy import ReplicaGone, ReplicaProxy
from jaxsgl.replicas.request_table import named
from jaxsgl.replicas.seat import Seat
from jaxsgl.replicas.seats import STOPPING, Seats

ABORTED = "aborted by request"

log = logging.getLogger(__name__)


class Requests:
    """Each goes on at another replica when its own dies, from where it was."""

    def __init__(
        self,
        config: EngineConfig,
        text: TextActor,
        seats: Seats,
        dispatcher: Dispatcher,
        bell: Bell,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._text = text
        self._seats = seats
        self._dispatcher = dispatcher
        self._bell = bell
        self._clock = clock
        self._quarantine = Quarantine()
        self._seeds = SeedStream(config.random_seed)
        self._journeys: dict[str, Journey] = {}
        """By id, of every request that was accepted and has not ended."""
        self._held = HeldPrompts(clock)
        self._entrance = Entrance()
        """Where requests are while they are accepted and at no replica."""
        self._crowd = Crowd()
        """All who were accepted."""

    @property
    def num_unanswered(self) -> int:
        """Those whose end is not known yet; those that only have to be read do not count."""
        return self._entrance.num_inside + sum(
            place is not None and not place.stream.is_complete
            for place in map(self._dispatcher.place_of, self._journeys.values())
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """As `EngineClient.generate`."""
        check_sampling(request.sampling)
        check_hold(request)
        if request.timeout_s is not None and request.timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline has passed", code="deadline_exceeded")
        self._check_queue(request.tenant)
        request_id = request.request_id
        self._check_id(request_id)
        with self._entrance:
            self._crowd.join(request.tenant)
            try:
                journey = await self._set_out(request)
            except BaseException:
                self._crowd.leave(request.tenant)
                raise
        try:
            while True:
                place = await self._place(journey)
                if place is None:
                    finish = Finish("abort", message=ABORTED)
                    yield journey.answer.end(finish, len(journey.admit.prompt_ids))
                    return
                try:
                    while True:
                        row = await place.stream.take()
                        now_s = self._clock()
                        if row.token_ids:
                            place.saw_tokens(len(row.token_ids), now_s)
                        if row.finish is not None:
                            place.saw_end(now_s)
                            if request.hold_s is not None and row.finish.kind == "length":
                                self._held.add(request_id, place.proxy, request.hold_s)
                        yield journey.answer.add(row)
                        if row.finish is not None:
                            return
                except ReplicaGone:
                    await self._wait_for_verdict(journey, place.proxy)
                finally:
                    self._dispatcher.leave(place)
                    if request.hold_s is not None and request_id not in self._held:
                        place.proxy.let_go(request_id)  # nobody saw the end of it
        finally:
            del self._journeys[request_id]
            self._crowd.leave(request.tenant)

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` would make of a prompt. Raises as that does."""
        self._check_queue()
        with self._entrance:
            return await self._encode(prompt)

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        self._check_queue()
        with self._entrance:
            try:
                return await self._text.decode(token_ids, skip_special_tokens)
            except ServiceDead as error:
                raise Unavailable(STOPPING) from error

    def abort(self, request_id: str) -> None:
        """End the requests that go by this id, and what is held for them; their readers still get a
        last delta."""
        for each in named(self._journeys, request_id):
            self._abort(self._journeys[each])
        self.let_go(request_id)

    def abort_all(self) -> None:
        for journey in list(self._journeys.values()):
            self._abort(journey)
        self._held.let_go_all()

    def let_go(self, request_id: str) -> None:
        """End what is held for the requests that go by this id."""
        self._held.let_go(request_id)

    def were_at_death(self, seat: Seat) -> None:
        """Their replica has died by itself, and has not let go of them yet."""
        for journey in self._dispatcher.at(seat):
            journey.was_at_death()
            if journey.is_quarantined:
                log.error("%s was alone and is quarantined", journey.request_id)
                self._quarantine.put(journey.admit, self._clock())

    def _abort(self, journey: Journey) -> None:
        place = self._dispatcher.place_of(journey)
        journey.was_aborted = True
        if place is not None:
            place.proxy.abort(journey.request_id, ABORTED)
        self._bell.ring()

    async def _set_out(self, request: GenerateRequest) -> Journey:
        begin_s = self._clock()
        seed = self._seeds.next()
        prompt_ids = await self._encode(request.prompt)
        param = prompt_param(request.prompt)
        admit = admission(request, prompt_ids, param, seed, self._seats.smallest_told())
        self._check_id(request.request_id)  # once more: another may have come while this one waited
        self._quarantine.check(admit, begin_s)
        deadline_s = None if request.timeout_s is None else begin_s + request.timeout_s
        journey = self._journeys[request.request_id] = Journey(admit, deadline_s)
        return journey

    async def _encode(self, prompt: Prompt) -> list[int]:
        try:
            return await self._text.encode(prompt)
        except ServiceDead as error:
            raise Unavailable(STOPPING) from error

    async def _place(self, journey: Journey) -> Place | None:
        with self._entrance:
            # Who has been at a replica was accepted, and waits for the next one if need be.
            patient = journey.was_placed
            place = await self._dispatcher.find(journey, patient=patient)
        journey.was_placed = True
        return place

    async def _wait_for_verdict(self, journey: Journey, proxy: ReplicaProxy) -> None:
        """Until it is known what the replica died of. Raises what that means for the request."""
        if not proxy.is_given_up:
            await asyncio.shield(proxy.died)
        if self._seats.is_stopped:
            raise Unavailable(STOPPING)
        if journey.is_quarantined:
            raise Quarantined

    def _check_id(self, request_id: str) -> None:
        if request_id in self._journeys:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")

    def _check_queue(self, tenant: str = "") -> None:
        """Refuse before any work is done for the request. A tenant that has less than its share of
        the places is let in all the same when others have taken them."""
        up = self._seats.up()
        num_open = self._entrance.num_inside + sum(seat.num_open for seat in up)
        num_slots = sum(seat.load.stats.slots_total for seat in up)
        num_places = self._config.max_queued_requests + num_slots
        if num_open < num_places:
            return
        if not self._config.fair_queue or self._crowd.has_its_share(tenant, num_places):
            raise QueueFull("too many requests are waiting")
