"""The engine as the front sees it: replicas, kept alive, behind one `generate`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec

from jaxsgl.actors.messages import Progress
from jaxsgl.actors.text_actor import TextActor
from jaxsgl.config import EngineConfig
from jaxsgl.interface import (
    Delta,
    EngineOperation,
    EngineStats,
    GenerateRequest,
    GrammarReport,
    GrammarSpec,
    ModelInfo,
    OperationReport,
    PauseMode,
    Prompt,
    ReplicaReport,
    Unavailable,
)
from jaxsgl.replicas.bell import Bell
from jaxsgl.replicas.capacity import active_line, loss_lines
from jaxsgl.replicas.common_state import CommonState
from jaxsgl.replicas.dispatch import Dispatcher
from jaxsgl.replicas.proxy import ReplicaDied
from jaxsgl.replicas.requests import Requests
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
from jaxsgl.replicas.seats import Seats, proxy_of

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
        self._text = text
        self._max_unhealthy = max_unhealthy
        self._device_kind = device_kind
        self._show_progress = on_progress
        self._count_restart = on_restart
        policy = policy or CacheAware()
        self._tracks_prefixes = len(specs) > 1 and isinstance(policy, CacheAware)
        seats = [
            Seat(index, spec, self, rules or SeatRules(), clock=clock, sleep=sleep)
            for index, spec in enumerate(specs)
        ]
        self._seats = Seats(seats)
        self._bell = Bell()
        dispatcher = Dispatcher(
            seats,
            policy,
            self._bell,
            names_prefixes=self._tracks_prefixes,
            follows_latency=follows_latency,
            clock=clock,
        )
        self._requests = Requests(config, text, self._seats, dispatcher, self._bell, clock=clock)
        self._common = CommonState(self._seats)
        self._follows_latency = follows_latency
        self._is_started = False

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
        if self._common.is_paused:  # what was accepted could never end
            with contextlib.suppress(Unavailable):
                await self.resume()
        self._seats.is_draining = True
        self._bell.ring()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._requests.num_unanswered and not self._seats.is_stopped:
                    await self._bell.wait()
        await self._end()

    async def stop(self) -> None:
        """End at once. Idempotent, also during `drain`; afterwards nothing of the pool is left."""
        self._seats.is_draining = True
        await self._end()

    async def _end(self) -> None:
        self._seats.is_stopped = True
        self._bell.ring()
        await asyncio.gather(*(seat.stop() for seat in self._seats))
        self._bell.ring()

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
            active = active_line(self._device_kind, self._seats.shares())
            log.info("%s is ready again. %s", seat.name, active)

    def on_death(self, seat: Seat, cause: ReplicaDied) -> None:
        if self._seats.is_stopped:
            return
        *gone, rest = loss_lines(self._device_kind, seat.spec.devices, self._seats.shares())
        for line in gone:
            log.warning(line)
        log.info(rest)
        if cause.by_itself:
            self._requests.were_at_death(seat)
        if self.num_unhealthy > self._max_unhealthy:
            self._fail(cause)

    def on_failed(self, seat: Seat, cause: Exception) -> None:
        if all(seat.state is SeatState.FAILED for seat in self._seats):
            self._fail(cause)

    def on_life_over(self, seat: Seat) -> None:
        self._seats.retire(seat)

    def on_change(self) -> None:
        self._bell.ring()

    def _fail(self, cause: Exception) -> None:
        if not self.failed.done() and not self._seats.is_stopped:
            self.failed.set_result(cause)
            for seat in self._seats:
                if seat.state in UNHEALTHY:
                    seat.give_up()
            self._bell.ring()

    @property
    def num_unhealthy(self) -> int:
        """Devices in replicas that died and are not ready again."""
        return self._seats.num_unhealthy

    # What an EngineClient is asked.

    @property
    def model(self) -> ModelInfo:
        """Of all replicas together."""
        model = self._common.described(self._seats.smallest_told().model)
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
        return not self._seats.is_draining and any(seat.is_up for seat in self._seats)

    @property
    def alive(self) -> bool:
        """False while every replica is dead, and for good once `failed` is done."""
        if self.failed.done() or self._seats.is_stopped:
            return False
        return any(seat.state not in (*UNHEALTHY, SeatState.STOPPED) for seat in self._seats)

    @property
    def num_devices(self) -> int:
        """In replicas that take requests now."""
        return sum(len(seat.spec.devices) for seat in self._seats if seat.is_up)

    def stats(self) -> EngineStats:
        return self._seats.stats()

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
        self._seats.of(replica_id).order(Order.DRAIN)

    def restart_replica(self, replica_id: int) -> None:
        self._seats.of(replica_id).order(Order.RESTART)

    def token_bytes(self, token_id: int) -> bytes:
        table = self._text.tokenizer.token_bytes
        return table[token_id] if token_id < len(table) else b""  # ids that only pad the model

    def abort(self, request_id: str) -> None:
        """End the requests that go by this id, and what is held for them; their readers still get a
        last delta."""
        self._requests.abort(request_id)

    def abort_all(self) -> None:
        self._requests.abort_all()

    def let_go(self, request_id: str) -> None:
        """End what is held for the requests that go by this id."""
        self._requests.let_go(request_id)

    async def pause(self, mode: PauseMode) -> None:
        """Returns when no step runs anywhere. Replicas that start meanwhile are paused too."""
        await self._common.pause(mode)

    async def resume(self) -> None:
        await self._common.resume()

    async def start_profile(self, folder: str, duration_s: float) -> None:
        """Of every replica, each in a folder of its own where there are several."""
        seats = self._seats.up()
        folders = [folder if len(seats) == 1 else f"{folder}/{seat.name}" for seat in seats]
        await asyncio.gather(
            *(
                proxy_of(seat).start_profile(own, duration_s)
                for seat, own in zip(seats, folders, strict=True)
            )
        )

    async def stop_profile(self) -> None:
        await asyncio.gather(*(proxy.stop_profile() for proxy in self._seats.up_proxies()))

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return await self._requests.decode(token_ids, skip_special_tokens=skip_special_tokens)

    async def flush_cache(self) -> None:
        """Forget every cached prefix. Raises Busy while a request runs or waits."""
        await asyncio.gather(*(proxy.flush_cache() for proxy in self._seats.up_proxies()))

    async def check_grammar(self, grammar: GrammarSpec, prefix: bytes) -> GrammarReport:
        """Raises InvalidGrammar."""
        return await self._seats.up_proxies()[0].check_grammar(grammar, prefix)

    async def operate(self, operation: EngineOperation) -> OperationReport:
        """Raises OperationRefused or OperationFailed."""
        return await self._common.operate(operation)

    async def prepare(self, seat: Seat) -> None:
        await self._common.bring_to(seat)

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` would make of a prompt. Raises as that does."""
        return await self._requests.encode(prompt)

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        return self._requests.generate(request)
