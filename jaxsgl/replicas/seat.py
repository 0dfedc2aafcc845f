"""A replica's place in the pool: one life after the other, on the same devices."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from jaxsgl.actors.messages import Progress, Ready
from jaxsgl.actors.service import ServiceDead
from jaxsgl.replicas.bell import Bell
from jaxsgl.replicas.launch import Launcher
from jaxsgl.replicas.proxy import HealthLimits, ReplicaDied, ReplicaProxy
from jaxsgl.replicas.restarts import RestartPolicy, RestartWindow
from jaxsgl.replicas.routing.load import ReplicaLoad

log = logging.getLogger(__name__)


class SeatState(enum.Enum):
    STARTING = "starting"
    """For the first time, or again after it was stopped on purpose."""
    READY = "ready"
    DRAINING = "draining"
    """Takes nothing new, because it is to be stopped."""
    STOPPED = "stopped"
    """On purpose."""
    DEAD = "dead"
    """It died; it is being started again."""
    FAILED = "failed"
    """It died too often."""


UNHEALTHY = (SeatState.DEAD, SeatState.FAILED)
"""What counts against `--max-unhealthy-gpus`."""
COMING = (SeatState.STARTING, SeatState.DEAD)
"""It will be ready again, or will have failed."""


class Order(enum.Enum):
    DRAIN = enum.auto()
    RESTART = enum.auto()


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a seat is made of."""

    launcher: Launcher
    devices: tuple[str, ...] = ("0",)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SeatRules:
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    limits: HealthLimits = field(default_factory=HealthLimits)
    drain_timeout_s: float = 30.0
    """What requests get to end by themselves before a replica is stopped on purpose; then they move
    to another."""


class SeatOwner:
    """Who is told what happens at a seat. Called from the event loop; must not block."""

    def on_progress(self, seat: Seat, progress: Progress) -> None: ...

    async def prepare(self, seat: Seat) -> None:
        """It has started and is not ready yet. What is raised ends that life."""

    def on_ready(self, seat: Seat) -> None: ...

    def on_restart(self, seat: Seat) -> None:
        """It is about to be started once more, after a death or on purpose."""

    def on_life_over(self, seat: Seat) -> None:
        """`seat.load` is about to begin anew."""

    def on_death(self, seat: Seat, cause: ReplicaDied) -> None:
        """Unasked. The seat is DEAD already; its requests have not moved yet."""

    def on_failed(self, seat: Seat, cause: Exception) -> None:
        """It is not started again by itself."""

    def on_change(self) -> None:
        """Something that a request may wait for: a seat is ready, or has let go of requests."""


class Seat:
    """Construct it in a running loop; `start`, then `stop`."""

    def __init__(
        self,
        replica_id: int,
        spec: ReplicaSpec,
        owner: SeatOwner,
        rules: SeatRules,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.replica_id = replica_id
        self.spec = spec
        self.state = SeatState.STARTING
        self.told: Ready | None = None
        """By the latest life that became ready."""
        self.epoch = -1
        self.load = ReplicaLoad(replica_id, spec.weight)
        self.proxy: ReplicaProxy | None = None
        """Of the latest life."""
        self._owner = owner
        self._rules = rules
        self._clock = clock
        self._sleep = sleep
        self._window = RestartWindow(rules.policy, clock)
        self._num_pages = 0
        self._order: Order | None = None
        self._ordered = asyncio.Event()
        self._bell = Bell()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"replica {self.replica_id}"

    @property
    def is_up(self) -> bool:
        """Whether a request could be sent to it now."""
        return self.state is SeatState.READY and self.proxy is not None and self.proxy.is_ready

    @property
    def num_open(self) -> int:
        """Requests that it has not let go of."""
        return 0 if self.proxy is None else len(self.proxy.requests)

    @property
    def num_pages(self) -> int:
        """As last reported, by an earlier life if need be."""
        self._num_pages = self.load.stats.pages_total or self._num_pages
        return self._num_pages

    async def start(self) -> None:
        """The first life. Raises StartError, with nothing left running."""
        if self.state is SeatState.STOPPED:
            raise ServiceDead(f"{self.name} was stopped")
        await self._live()
        self._keeping = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self) -> None:
        """For good, at once. Idempotent."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if self.proxy is not None:
            await self.proxy.stop(0)
        self.state = SeatState.STOPPED

    def give_up(self) -> None:
        """Dead as it is, it is not started again. Idempotent."""
        self.state = SeatState.FAILED
        if self._keeping is not None:
            self._keeping.cancel()

    def order(self, order: Order) -> None:
        """Have it stopped when its requests have ended, to stay so or to be started again. An order
        to a seat that is not ready takes effect once it is; a stopped one can be restarted."""
        if self.state is SeatState.STOPPED and order is Order.DRAIN:
            return
        self._order = order
        self._ordered.set()

    # One life after the other.

    async def _live(self) -> None:
        """Start a replica; returns when it is ready."""
        self.epoch += 1
        if self.epoch:
            self._owner.on_restart(self)
            self._owner.on_life_over(self)
        self.load = ReplicaLoad(self.replica_id, self.spec.weight)
        self.proxy = ReplicaProxy(
            self.name,
            self.spec.launcher(self.epoch),
            load=self.load,
            on_progress=lambda progress: self._owner.on_progress(self, progress),
            on_ready=self._on_ready,
            on_released=self._on_released,
            limits=self._rules.limits,
        )
        # The first to be called when it has died, before any of its requests hears of it.
        self.proxy.died.add_done_callback(self._on_died)
        await self.proxy.start()
        try:
            await self._owner.prepare(self)
        except BaseException:
            self.proxy.give_up()
            await self.proxy.stop(0)
            raise
        self.state = SeatState.READY
        if self._order is Order.RESTART:  # it came while the replica was dead
            self._obeyed()
        self._owner.on_ready(self)
        self._owner.on_change()

    def _on_ready(self, ready: Ready) -> None:
        self.told = ready

    def _on_released(self) -> None:
        self._bell.ring()
        self._owner.on_change()

    def _on_died(self, died: asyncio.Future[Exception | None]) -> None:
        assert self.proxy is not None
        self._bell.ring()
        cause = died.result()
        if isinstance(cause, ReplicaDied) and not self.proxy.is_given_up:
            self.state = SeatState.DEAD
            self._owner.on_death(self, cause)

    async def _keep(self) -> None:
        while True:
            cause = await self._death_or_order()
            if cause is None:
                await self._stop_in_order()
                cause = await self._start_again_in_order()
            if cause is not None:
                await self._revive(cause)

    async def _death_or_order(self) -> Exception | None:
        """What the replica died of; None if it lives and is to be stopped."""
        assert self.proxy is not None
        ordered = asyncio.create_task(self._ordered.wait())
        try:
            await asyncio.wait({self.proxy.died, ordered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ordered.cancel()
        return self.proxy.died.result() if self.proxy.died.done() else None

    async def _stop_in_order(self) -> None:
        """Let its requests end, or move, and stop it."""
        proxy = self.proxy
        assert proxy is not None
        self.state = SeatState.DRAINING
        log.info("%s takes no new requests; %d are open", self.name, self.num_open)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rules.drain_timeout_s):
                while self.num_open and not proxy.died.done():
                    await self._bell.wait()
        proxy.give_up()
        await proxy.stop(0)
        self.state = SeatState.STOPPED
        log.info("%s is stopped", self.name)
        self._owner.on_change()

    async def _start_again_in_order(self) -> Exception | None:
        """Wait until that is wanted. Why it could not be started, if so."""
        while self._order is not Order.RESTART:
            self._ordered.clear()
            await self._ordered.wait()
        self._obeyed()
        self.state = SeatState.STARTING
        try:
            await self._live()
        except Exception as error:
            log.error("restarting %s failed: %s", self.name, error)
            self.state = SeatState.DEAD
            self._owner.on_death(self, ReplicaDied(str(error), by_itself=False))
            return error
        return None

    async def _revive(self, cause: Exception) -> None:
        """Start it again after a death: as often as the policy allows, and then once somebody
        orders it."""
        while True:
            delay_s = self._window.next_delay_s()
            if delay_s is None:
                await self._fail(cause)
                delay_s = 0.0
            log.warning("restarting %s in %.1f s", self.name, delay_s)
            await self._sleep(delay_s)
            try:
                await self._live()
                return
            except Exception as error:
                log.error("restarting %s failed: %s", self.name, error)
                cause = error
                self.state = SeatState.DEAD

    async def _fail(self, cause: Exception) -> None:
        self.state = SeatState.FAILED
        log.error("%s has died too often and is not started again", self.name)
        self._owner.on_failed(self, cause)
        self._owner.on_change()
        while self._order is not Order.RESTART:
            self._ordered.clear()
            await self._ordered.wait()
        self._obeyed()
        self._window = RestartWindow(self._rules.policy, self._clock)
        self.state = SeatState.DEAD

    def _obeyed(self) -> None:
        self._order = None
        self._ordered.clear()
