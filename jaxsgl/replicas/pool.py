"""The engine as the front sees it: replicas, kept alive, behind one `generate`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec

from jaxsgl.actors.messages import Progress, Ready
from jaxsgl.actors.service import ServiceDead
from jaxsgl.actors.text_actor import TextActor, prompt_param
from jaxsgl.config import EngineConfig
from jaxsgl.interface import (
    DeadlineExceeded,
    Delta,
    EngineOperation,
    EngineStats,
    Finish,
    GenerateRequest,
    GrammarReport,
    GrammarSpec,
    InvalidRequest,
    ModelInfo,
    OperationReport,
    PauseMode,
    Prompt,
    QueueFull,
    ReleaseMemory,
    ReplicaReport,
    Reshard,
    Unavailable,
    UnknownReplica,
    UpdateWeights,
    check_sampling,
)
from jaxsgl.replicas.admission import SeedStream, admission
from jaxsgl.replicas.bell import Bell
from jaxsgl.replicas.capacity import Share, active_line, loss_lines
from jaxsgl.replicas.crowd import Crowd
from jaxsgl.replicas.dispatch import Dispatcher, Place
from jaxsgl.replicas.entrance import Entrance
from jaxsgl.replicas.journey import Journey, Quarantine, Quarantined
from jaxsgl.replicas.proxy import ReplicaDied, ReplicaGone, ReplicaProxy
from jaxsgl.replicas.request_table import named
from jaxsgl.replicas.routing.policies import CacheAware, Policy
from jaxsgl.replicas.seat import (
    UNHEALTHY,
    Order,
    ReplicaSpec,
    Seat,
    SeatOwner,
    SeatRules,
    SeatState,
)
from jaxsgl.replicas.totals import counters_of, total

ABORTED = "aborted by request"
STOPPING = "the server is stopping"

log = logging.getLogger(__name__)


class ReplicaPool(SeatOwner):
    """An `interface.EngineClient`. Construct it in a running loop, with a text actor that is
    started.

    A replica that dies is started again under `rules`; its requests go on at another one, or at the
    next that is ready, from where they were. `failed` is done, with the last cause, when more than
    `max_unhealthy` devices are in dead replicas, or when no replica is left that could come back;
    the owner then drains and stops the pool.
    """

    def __init__(
        self,
        config: EngineConfig,
        text: TextActor,
        specs: Sequence[ReplicaSpec],
        *,
        policy: Policy | None = None,
        follows_latency: bool = False,
        rules: SeatRules | None = None,
        max_unhealthy: int = 0,
        device_kind: str = "CPU",
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_restart: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._config = config
        self._text = text
        self._max_unhealthy = max_unhealthy
        self._device_kind = device_kind
        self._show_progress = on_progress
        self._count_restart = on_restart
        self._clock = clock
        policy = policy or CacheAware()
        self._tracks_prefixes = len(specs) > 1 and isinstance(policy, CacheAware)
        self._seats = [
            Seat(index, spec, self, rules or SeatRules(), clock=clock, sleep=sleep)
            for index, spec in enumerate(specs)
        ]
        self._bell = Bell()
        self._dispatcher = Dispatcher(
            self._seats,
            policy,
            self._bell,
            names_prefixes=self._tracks_prefixes,
            follows_latency=follows_latency,
            clock=clock,
        )
        self._follows_latency = follows_latency
        self._quarantine = Quarantine()
        self._seeds = SeedStream(config.random_seed)
        self._journeys: dict[str, Journey] = {}
        """By id, of every request that was accepted and has not ended."""
        self._entrance = Entrance()
        """Where requests are while they are accepted and at no replica."""
        self._crowd = Crowd()
        """All who were accepted."""
        self._retired = EngineStats()
        """Counters of replicas that are gone."""
        self._weights: UpdateWeights | None = None
        self._spread: Reshard | None = None
        """Those in use, if they are not the ones that replicas start with."""
        self._changes: OperationReport | None = None
        """How the replicas are since the last operation."""
        self._is_paused = False
        self._is_started = False
        self._is_draining = False
        self._is_stopped = False

    # Life.

    async def start(self) -> None:
        """Returns when all replicas are ready. Raises StartError, with its line, if one cannot be;
        none is left running then."""
        starts = [asyncio.create_task(seat.start(), name=seat.name) for seat in self._seats]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.stop()
            raise
        self._is_started = True

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, give those accepted `timeout_s` seconds, then end the replicas."""
        if self._is_paused:  # what was accepted could never end
            with contextlib.suppress(Unavailable):
                await self.resume()
        self._is_draining = True
        self._bell.ring()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._num_unanswered() and not self._is_stopped:
                    await self._bell.wait()
        await self._end()

    async def stop(self) -> None:
        """End at once. Idempotent, also during `drain`; afterwards nothing of the pool is left."""
        self._is_draining = True
        await self._end()

    async def _end(self) -> None:
        self._is_stopped = True
        self._bell.ring()
        await asyncio.gather(*(seat.stop() for seat in self._seats))
        self._bell.ring()

    def _num_unanswered(self) -> int:
        """Requests whose end is not known yet; those that only have to be read do not count."""
        return self._entrance.num_inside + sum(
            place is not None and not place.stream.is_complete
            for place in map(self._dispatcher.place_of, self._journeys.values())
        )

    # What its seats tell.

    def on_progress(self, seat: Seat, progress: Progress) -> None:
        if seat.replica_id == 0:  # one bar is enough
            self._show_progress(progress)

    def on_restart(self, seat: Seat) -> None:
        self._count_restart()

    def on_ready(self, seat: Seat) -> None:
        if self._tracks_prefixes and seat.proxy is not None and seat.proxy.is_ready:
            seat.proxy.track_prefixes()
        if self._is_started:
            active = active_line(self._device_kind, self._shares())
            log.info("%s is ready again. %s", seat.name, active)

    def on_death(self, seat: Seat, cause: ReplicaDied) -> None:
        if self._is_stopped:
            return
        *gone, rest = loss_lines(self._device_kind, seat.spec.devices, self._shares())
        for line in gone:
            log.warning(line)
        log.info(rest)
        if cause.by_itself:
            for journey in self._dispatcher.at(seat):
                journey.was_at_death()
                if journey.is_quarantined:
                    log.error("%s was alone and is quarantined", journey.request_id)
                    self._quarantine.put(journey.admit, self._clock())
        if self.num_unhealthy > self._max_unhealthy:
            self._fail(cause)

    def on_failed(self, seat: Seat, cause: Exception) -> None:
        if all(seat.state is SeatState.FAILED for seat in self._seats):
            self._fail(cause)

    def on_life_over(self, seat: Seat) -> None:
        self._retired = total((self._retired, counters_of(seat.load.stats)))

    def on_change(self) -> None:
        self._bell.ring()

    def _fail(self, cause: Exception) -> None:
        if not self.failed.done() and not self._is_stopped:
            self.failed.set_result(cause)
            for seat in self._seats:
                if seat.state in UNHEALTHY:
                    seat.give_up()
            self._bell.ring()

    def _shares(self) -> list[Share]:
        return [
            Share(seat.spec.devices, seat.num_pages, seat.state not in UNHEALTHY)
            for seat in self._seats
        ]

    @property
    def num_unhealthy(self) -> int:
        """Devices in replicas that died and are not ready again."""
        return sum(len(seat.spec.devices) for seat in self._seats if seat.state in UNHEALTHY)

    # What an EngineClient is asked.

    @property
    def model(self) -> ModelInfo:
        """Of all replicas together."""
        model = self._smallest_ready().model
        if self._changes is not None:
            version = self._changes.weight_version
            model = msgspec.structs.replace(model, weight_version=version)
        if self._changes is not None and self._spread is not None:
            mesh = self._changes.mesh
            sizes = [int(axis.partition("=")[2]) for axis in mesh.split(",")]
            model = msgspec.structs.replace(model, mesh=mesh, num_devices=math.prod(sizes))
        if len(self._seats) == 1:
            return model
        return msgspec.structs.replace(
            model,
            num_devices=sum(len(seat.spec.devices) for seat in self._seats),
            mesh=f"dp={len(self._seats)},{model.mesh}",
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the replicas have to say about their start, in lines."""
        lines = (line for seat in self._seats if seat.told for line in seat.told.notes)
        return tuple(dict.fromkeys(lines))

    @property
    def ready(self) -> bool:
        return not self._is_draining and any(seat.is_up for seat in self._seats)

    @property
    def alive(self) -> bool:
        """False while every replica is dead, and for good once `failed` is done."""
        if self.failed.done() or self._is_stopped:
            return False
        return any(seat.state not in (*UNHEALTHY, SeatState.STOPPED) for seat in self._seats)

    @property
    def num_devices(self) -> int:
        """In replicas that take requests now."""
        return sum(len(seat.spec.devices) for seat in self._seats if seat.is_up)

    def stats(self) -> EngineStats:
        return total((self._retired, *map(_reading, self._seats)))

    def replicas(self) -> list[ReplicaReport]:
        return [
            ReplicaReport(
                replica_id=seat.replica_id,
                state=seat.state.value,
                epoch=max(0, seat.epoch),
                devices=seat.spec.devices,
                weight=seat.spec.weight,
                num_in_flight=seat.load.num_in_flight,
                backlog_tokens=seat.load.backlog_tokens,
                stats=seat.load.stats,
                latency=seat.load.latency.report() if self._follows_latency else None,
            )
            for seat in self._seats
        ]

    def drain_replica(self, replica_id: int) -> None:
        self._seat(replica_id).order(Order.DRAIN)

    def restart_replica(self, replica_id: int) -> None:
        self._seat(replica_id).order(Order.RESTART)

    def token_bytes(self, token_id: int) -> bytes:
        table = self._text.tokenizer.token_bytes
        return table[token_id] if token_id < len(table) else b""  # ids that only pad the model

    def abort(self, request_id: str) -> None:
        """End the requests that go by this id; their readers still get a last delta."""
        for each in named(self._journeys, request_id):
            self._abort(self._journeys[each])

    def abort_all(self) -> None:
        for journey in list(self._journeys.values()):
            self._abort(journey)

    def _abort(self, journey: Journey) -> None:
        place = self._dispatcher.place_of(journey)
        journey.was_aborted = True
        if place is not None:
            place.proxy.abort(journey.request_id, ABORTED)
        self._bell.ring()

    async def pause(self, mode: PauseMode) -> None:
        """Returns when no step runs anywhere. Replicas that start meanwhile are paused too."""
        self._is_paused = True
        await asyncio.gather(*(proxy.pause(mode) for proxy in self._up()))

    async def resume(self) -> None:
        self._is_paused = False
        await asyncio.gather(*(proxy.resume() for proxy in self._up()))

    async def start_profile(self, folder: str, duration_s: float) -> None:
        """Of every replica, each in a folder of its own where there are several."""
        seats = self._up_seats()
        folders = [folder if len(seats) == 1 else f"{folder}/{seat.name}" for seat in seats]
        await asyncio.gather(
            *(
                _proxy(seat).start_profile(own, duration_s)
                for seat, own in zip(seats, folders, strict=True)
            )
        )

    async def stop_profile(self) -> None:
        await asyncio.gather(*(proxy.stop_profile() for proxy in self._up()))

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        self._check_queue()
        with self._entrance:
            try:
                return await self._text.decode(token_ids, skip_special_tokens)
            except ServiceDead as error:
                raise Unavailable(STOPPING) from error

    async def flush_cache(self) -> None:
        """Forget every cached prefix. Raises Busy while a request runs or waits."""
        await asyncio.gather(*(proxy.flush_cache() for proxy in self._up()))

    async def check_grammar(self, grammar: GrammarSpec, prefix: bytes) -> GrammarReport:
        """Raises InvalidGrammar."""
        return await self._up()[0].check_grammar(grammar, prefix)

    async def operate(self, operation: EngineOperation) -> OperationReport:
        """Raises OperationRefused or OperationFailed.

        The first replica shows whether it can be done. One that cannot do what that did is started
        again, and made to follow like every one that starts later.
        """
        first, *others = self._up_seats()
        report = await _proxy(first).operate(operation)
        if isinstance(operation, UpdateWeights):
            version = report.weight_version
            self._weights = msgspec.structs.replace(operation, weight_version=version)
        if isinstance(operation, Reshard):
            rules = operation.sharding_rules
            before = self._spread or Reshard()
            self._spread = Reshard(
                mesh=before.mesh if operation.mesh is None else operation.mesh,
                sharding_rules=before.sharding_rules if rules is None else rules,
            )
        self._changes = report
        results = await asyncio.gather(
            *(_proxy(seat).operate(operation) for seat in others), return_exceptions=True
        )
        for seat, result in zip(others, results, strict=True):
            if isinstance(result, BaseException):
                log.error("%s could not follow: %s", seat.name, result)
                seat.order(Order.RESTART)
        return report

    async def prepare(self, seat: Seat) -> None:
        """Have a replica that has started do what the others have done since their start."""
        if self._weights is not None:
            await _proxy(seat).operate(self._weights)
        if self._spread is not None:
            await _proxy(seat).operate(self._spread)
        if self._changes is not None and self._changes.released:
            await _proxy(seat).operate(ReleaseMemory(parts=self._changes.released))
        if self._is_paused:
            await _proxy(seat).pause("in_place")

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` would make of a prompt. Raises as that does."""
        self._check_queue()
        with self._entrance:
            return await self._encode(prompt)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        check_sampling(request.sampling)
        if request.timeout_s is not None and request.timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline has passed", code="deadline_exceeded")
        self._check_queue(request.tenant)
        request_id = request.request_id
        if request_id in self._journeys:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")
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
                        yield journey.answer.add(row)
                        if row.finish is not None:
                            return
                except ReplicaGone:
                    await self._wait_for_verdict(journey, place.proxy)
                finally:
                    self._dispatcher.leave(place)
        finally:
            del self._journeys[request_id]
            self._crowd.leave(request.tenant)

    # Its parts.

    async def _set_out(self, request: GenerateRequest) -> Journey:
        begin_s = self._clock()
        seed = self._seeds.next()
        prompt_ids = await self._encode(request.prompt)
        param = prompt_param(request.prompt)
        admit = admission(request, prompt_ids, param, seed, self._smallest_ready())
        if request.request_id in self._journeys:
            message = f"request id {request.request_id!r} is in use"
            raise InvalidRequest(message, param="request_id")
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
        if self._is_stopped:
            raise Unavailable(STOPPING)
        if journey.is_quarantined:
            raise Quarantined

    def _check_queue(self, tenant: str = "") -> None:
        """Refuse before any work is done for the request. A tenant that has less than its share of
        the places is let in all the same when others have taken them."""
        up = self._up_seats()
        num_open = self._entrance.num_inside + sum(seat.num_open for seat in up)
        num_slots = sum(seat.load.stats.slots_total for seat in up)
        num_places = self._config.max_queued_requests + num_slots
        if num_open < num_places:
            return
        if not self._config.fair_queue or self._crowd.has_its_share(tenant, num_places):
            raise QueueFull("too many requests are waiting")

    def _up_seats(self) -> list[Seat]:
        """At least one. Raises Unavailable."""
        if self._is_draining:
            raise Unavailable(STOPPING)
        up = [seat for seat in self._seats if seat.is_up]
        if not up:
            raise Unavailable("no replica is ready")
        return up

    def _up(self) -> list[ReplicaProxy]:
        return [_proxy(seat) for seat in self._up_seats()]

    def _seat(self, replica_id: int) -> Seat:
        if not 0 <= replica_id < len(self._seats):
            raise UnknownReplica(f"there is no replica {replica_id}")
        return self._seats[replica_id]

    def _smallest_ready(self) -> Ready:
        """What the replica with the least room said, of those that were ever ready."""
        told = [seat.told for seat in self._seats if seat.told is not None]
        if not told:
            raise Unavailable("no replica is ready")
        return min(told, key=lambda ready: ready.max_prompt_len)


def _proxy(seat: Seat) -> ReplicaProxy:
    assert seat.proxy is not None
    return seat.proxy


def _reading(seat: Seat) -> EngineStats:
    """Of a replica that is gone only the counters."""
    gone = seat.state in (*UNHEALTHY, SeatState.STOPPED)
    return counters_of(seat.load.stats) if gone else seat.load.stats
