"""What the front holds of one replica: its link, its requests and its pulse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from jaxsgl.actors.messages import (
    Abort,
    Admit,
    Checked,
    CheckGrammar,
    Drain,
    FlushCache,
    LetGo,
    Operate,
    Operated,
    Pause,
    PrefixChanges,
    Probe,
    Progress,
    Ready,
    Refused,
    Released,
    Reply,
    Report,
    Resume,
    StartFailed,
    StartProfile,
    StepOutputs,
    Stop,
    StopProfile,
    ToFront,
    ToReplica,
    TrackPrefixes,
)
from jaxsgl.actors.output_stream import OutputStream
from jaxsgl.actors.service import Service, ServiceDead, State
from jaxsgl.cache.page_hash import split_hashes
from jaxsgl.interface import (
    Busy,
    EngineOperation,
    GrammarReport,
    GrammarSpec,
    InvalidGrammar,
    OperationFailed,
    OperationRefused,
    OperationReport,
    PauseMode,
    Unavailable,
)
from jaxsgl.replicas.launch import Ending, Launch, StartError
from jaxsgl.replicas.link import Link
from jaxsgl.replicas.pulse import CHECK_PERIOD_S, HealthLimits, Pulse, Verdict
from jaxsgl.replicas.request_table import RequestTable
from jaxsgl.replicas.routing.load import ReplicaLoad
from jaxsgl.scheduling.outputs import RowOutput

_STOP_GRACE_S = 5.0
"""What a replica gets to end beyond the time its requests get."""
_CLOSE_TIMEOUT_S = 1.0


class ReplicaGone(Unavailable):
    """The replica ended before the request did, which may go on elsewhere."""

    def __init__(self) -> None:
        super().__init__("the replica that served this request has ended")


class ReplicaDied(ServiceDead):
    """Unasked. `by_itself` is that of its `Ending`."""

    def __init__(self, message: str, *, by_itself: bool) -> None:
        super().__init__(message)
        self.by_itself = by_itself


class ReplicaProxy(Service):
    """One life of one replica: started when the replica is ready, dead when nothing is left of it.

    The replica dies if it ends, closes its link or is silent for too long. Its requests then fail
    with ReplicaGone. The cause of an unasked death is a ReplicaDied.
    """

    def __init__(
        self,
        name: str,
        launch: Launch,
        *,
        load: ReplicaLoad,
        on_progress: Callable[[Progress], None],
        on_ready: Callable[[Ready], None],
        on_released: Callable[[], None] = lambda: None,
        limits: HealthLimits | None = None,
    ) -> None:
        """`load` is kept up to date from what the replica tells; `on_released` is called when it
        has let go of requests."""
        super().__init__(name)
        self.requests = RequestTable()
        self.load = load
        self.is_given_up = False
        """Whether its requests were taken from it."""
        self._on_released = on_released
        self._limits = limits or HealthLimits()
        self._launch = launch
        self._on_progress = on_progress
        self._on_ready = on_ready
        self._link: Link[ToReplica] | None = None
        self._ended: asyncio.Task[Ending] | None = None
        loop = asyncio.get_running_loop()
        self._got_ready: asyncio.Future[None] = loop.create_future()
        self._asks: dict[int, asyncio.Future[Any]] = {}
        self._num_asks = 0
        self._num_waiting = 0
        """For answers; a probe does not count."""
        self._heard = False

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be heard."""
        return (
            self.state is State.RUNNING
            and self._link is not None
            and not self._link.closed.done()
            and not self.is_given_up
        )

    def admit(self, admit: Admit) -> OutputStream:
        """Raises InvalidRequest for an id in use, Unavailable if the replica is not ready."""
        link = self._open_link()
        stream = self.requests.open(admit.request_id)
        link.send(admit)
        return stream

    async def room(self) -> None:
        """Wait while the replica lags behind with reading."""
        if self._link is not None:
            await self._link.room()

    def abort(self, request_id: str, reason: str) -> None:
        """Ask the replica to end it. Its stream still gets a last row. Idempotent, for any id."""
        if self._link is not None and self.requests.start_abort(request_id):
            self._link.send(Abort(request_id, reason))

    def leave(self, request_id: str) -> None:
        """Nobody reads this request any more: abort it unless it has finished. Idempotent."""
        self.abort(request_id, "the client is gone")
        self.requests.leave(request_id)

    def let_go(self, request_id: str) -> None:
        """End what is held for a request that was answered, or that its reader has left.
        Idempotent, for any id."""
        if self._link is not None and self.is_ready:
            self._link.send(LetGo(request_id))

    def give_up(self) -> None:
        """Take its requests away, before it is stopped. Idempotent."""
        self.is_given_up = True
        self.requests.fail_all(ReplicaGone())

    def track_prefixes(self) -> None:
        """Have its cached prefixes told to `load.sketch`."""
        self._open_link().send(TrackPrefixes())

    async def flush_cache(self) -> None:
        """Raises Busy while a request runs or waits, Unavailable if the replica is gone."""
        await self._order(FlushCache)

    async def pause(self, mode: PauseMode) -> None:
        """Returns when no step runs. Raises Unavailable if the replica is gone."""
        await self._order(lambda ask_id: Pause(ask_id, mode))

    async def resume(self) -> None:
        await self._order(Resume)

    async def start_profile(self, folder: str, duration_s: float) -> None:
        """Raises Busy while a profile is being taken."""
        await self._order(lambda ask_id: StartProfile(ask_id, folder, duration_s))

    async def stop_profile(self) -> None:
        """Raises Busy if none is being taken."""
        await self._order(StopProfile)

    async def check_grammar(self, grammar: GrammarSpec, prefix: bytes) -> GrammarReport:
        """Raises InvalidGrammar, or Unavailable if the replica is gone."""
        checked: Checked = await self._ask(lambda ask_id: CheckGrammar(ask_id, grammar, prefix))
        if checked.report is None:
            raise InvalidGrammar(checked.error or "the grammar cannot be served")
        return checked.report

    async def operate(self, operation: EngineOperation) -> OperationReport:
        """Raises OperationRefused, OperationFailed, or Unavailable if the replica is gone."""
        operated: Operated = await self._ask(lambda ask_id: Operate(ask_id, operation))
        if operated.report is None:
            kind = OperationRefused if operated.refused else OperationFailed
            raise kind(operated.error or "the operation failed")
        return operated.report

    async def _order(self, message: Callable[[int], ToReplica]) -> None:
        """Send a message that is answered by Reply. Raises Busy, with the reason in that."""
        reply: Reply = await self._ask(message)
        if reply.error is not None:
            raise Busy(reply.error)

    async def _ask(self, message: Callable[[int], ToReplica]) -> Any:
        """Send a message made with an id of its own, and return its answer."""
        link = self._open_link()
        self._num_asks += 1
        ask_id = self._num_asks
        self._asks[ask_id] = asyncio.get_running_loop().create_future()
        link.send(message(ask_id))
        self._num_waiting += 1
        try:
            return await self._asks[ask_id]
        finally:
            self._num_waiting -= 1
            del self._asks[ask_id]

    def _open_link(self) -> Link[ToReplica]:
        if self._link is None or not self.is_ready:
            raise Unavailable("the replica is not ready")
        return self._link

    # The service.

    async def on_start(self) -> None:
        self._link = await self._launch.open(self)
        self._ended = asyncio.create_task(self._launch.wait_for_end())
        await asyncio.wait({self._got_ready, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if not self._got_ready.done():
            how = self._ended.result().how or "ended"
            raise StartError(f"the replica {how} while it was loading")
        self._got_ready.result()

    async def run(self) -> None:
        assert self._ended is not None
        pulse = Pulse(self._limits)
        while not self._ended.done():
            self._heard = False
            await asyncio.wait({self._ended}, timeout=CHECK_PERIOD_S)
            verdict = pulse.beat(heard=self._heard, busy=self._is_busy)
            if verdict is Verdict.DEAD and not self._ended.done():
                why = f"{self.name} gave no sign of life for {pulse.silent_s:.0f} s"
                raise ReplicaDied(why, by_itself=False)
            if verdict is Verdict.PROBE and self.is_ready:
                self._probe(pulse)
        ending = self._ended.result()
        if ending.how is not None or self.state is not State.STOPPING:
            why = f"{self.name} {ending.how or 'ended unasked'}"
            raise ReplicaDied(why, by_itself=ending.by_itself)

    @property
    def _is_busy(self) -> bool:
        return len(self.requests) > 0 or self._num_waiting > 0

    def _probe(self, pulse: Pulse) -> None:
        assert self._link is not None
        self._num_asks += 1
        ask_id = self._num_asks
        answer = self._asks[ask_id] = asyncio.get_running_loop().create_future()

        def on_answer(answer: asyncio.Future[Any]) -> None:
            del self._asks[ask_id]
            if not answer.cancelled() and answer.exception() is None:
                pulse.probe_answered()

        answer.add_done_callback(on_answer)
        self._link.send(Probe(ask_id))

    async def stop(self, timeout_s: float) -> None:
        """Admit nothing more, let what runs finish for `timeout_s` seconds, and end the replica."""
        if self._link is not None:
            self._link.send(Drain(timeout_s) if timeout_s > 0 else Stop())
        await super().stop(timeout_s + _STOP_GRACE_S)

    async def on_stop(self) -> None:
        if self._ended is not None:
            self._ended.cancel()
        # At once: they need not wait for the end of a process that was taken for dead.
        self.requests.fail_all(ReplicaGone())
        await self._launch.close()
        if self._link is not None:
            self._link.close()
            await asyncio.wait({self._link.closed}, timeout=_CLOSE_TIMEOUT_S)

    # The receiver.

    def on_message(self, message: ToFront) -> None:
        self._heard = True
        match message:
            case StepOutputs():
                for row in message.rows:
                    if self._is_cut_off(row):
                        self.requests.cut_off(row.request_id, ReplicaGone())
                    else:
                        self.requests.push(row)
            case Refused():
                self.requests.refuse(message.request_id, InvalidGrammar(message.message))
            case Released():
                for request_id in message.request_ids:
                    self.requests.release(request_id)
                self._on_released()
            case Report():
                self.load.stats, self.load.speed = message.stats, message.speed
            case PrefixChanges(added, dropped, cleared):
                names = split_hashes(added), split_hashes(dropped)
                self.load.sketch.change(*names, cleared)
            case Reply() | Checked() | Operated():
                asked = self._asks.get(message.ask_id)
                if asked is not None and not asked.done():
                    asked.set_result(message)
            case Progress():
                self._on_progress(message)
            case Ready():
                if not self._got_ready.done():
                    self._on_ready(message)
                    self._got_ready.set_result(None)
            case StartFailed():
                if not self._got_ready.done():
                    self._got_ready.set_exception(StartError(message.message))
            case _:  # Drained: the end of the replica follows, and is what counts.
                pass

    def on_closed(self, cause: Exception | None) -> None:
        gone = ReplicaGone()
        self.requests.fail_all(gone)
        for asked in list(self._asks.values()):
            if not asked.done():
                asked.set_exception(gone)

    def _is_cut_off(self, row: RowOutput) -> bool:
        """Whether the row is of a replica that ends though nobody here has told it to."""
        is_last = row.finish is not None and row.finish.kind == "shutdown"
        return is_last and self.state is not State.STOPPING
