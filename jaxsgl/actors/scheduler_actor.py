"""The loop of a replica: messages in, steps to the runner, outputs out.

Holds no rules of its own. Which rows run and what their draws mean is decided in `scheduling`; this
keeps the device busy and delivers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

import msgspec

from jaxsgl.actors.grammar_actor import GrammarActor
from jaxsgl.actors.grammar_desk import GrammarDesk, GrammarDone
from jaxsgl.actors.mailbox import Mailbox, MailboxClosed
from jaxsgl.actors.messages import (
    CONTROL,
    Abort,
    Admit,
    CheckGrammar,
    Drain,
    Drained,
    FlushCache,
    LetGo,
    Operate,
    Pause,
    PrefixChanges,
    Probe,
    Refused,
    Released,
    Reply,
    Resume,
    Speed,
    StepOutputs,
    Stop,
    ToFront,
    Told,
    ToReplica,
    TrackPrefixes,
)
from jaxsgl.actors.operation_desk import OperationDesk, OperationPrepared
from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.actors.service import Service
from jaxsgl.actors.speed_meter import SpeedMeter
from jaxsgl.actors.timeline import Span, Timeline
from jaxsgl.actors.times import QueueMeter, RateMeter
from jaxsgl.cache.errors import AccountingError
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.interface import EngineStats, Finish
from jaxsgl.scheduling.outputs import RowOutput
from jaxsgl.scheduling.scheduler import Scheduler, SchedulingError
from jaxsgl.step import StepPlan, StepResult

BUSY = "the cache can be flushed only while no request runs or waits"

CHECK_PERIOD_S = 30.0
"""Between two recounts of an idle replica; one takes milliseconds per thousand cached prefixes."""

log = logging.getLogger(__name__)


class MaskReady:
    """A mask that a request waits for is ready."""


MASK_READY = MaskReady()

Internal = GrammarDone | OperationPrepared | MaskReady
"""What comes from the replica's own tasks and threads."""


class SchedulerActor(Service):
    """Runs one scheduler against one runner until it is told to stop or has drained.

    It dies, and the replica with it, if the device cannot be brought back after a failed step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: RunnerActor,
        send: Callable[[ToFront], None],
        *,
        overlap: bool,
        capacity: int,
        grammars: GrammarActor | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """`send` never blocks. `capacity` bounds the messages that wait to be looked at: requests
        and their aborts. Without `grammars`, requests with one are refused. The owner of `runner`
        and `grammars` stops them."""
        super().__init__("scheduler")
        self._scheduler = scheduler
        self._runner = runner
        self._send = send
        self._timeline = Timeline() if timeline is None else timeline
        self._max_in_flight = 2 if overlap else 1
        self._mailbox: Mailbox[ToReplica | Internal] = Mailbox(capacity)
        self._grammars = GrammarDesk(grammars, self._on_grammar_done)
        self._loop = asyncio.get_running_loop()
        self._wake_is_due = False
        self._queue = QueueMeter(self._loop.time)
        self._rate = RateMeter(self._loop.time)
        self._in_flight: deque[asyncio.Future[StepResult]] = deque()
        self._operations = OperationDesk(runner, send, self._on_prepared, self._loop.time)
        self._flushes: list[int] = []
        """Asked for and not answered yet."""
        self._pauses: list[Pause] = []
        """Asked for and not answered yet."""
        self._paused = False
        self._drain_deadline_s: float | None = None
        """On the loop's clock; None while nobody asked for a drain."""
        self._next_check_s = 0.0
        self._num_rebuilds = 0
        self._speed = SpeedMeter(runner.limits.chain_len)
        self._last_step_id = -1
        """Of the steps applied; -1 before the first."""

    def deliver(self, message: ToReplica) -> None:
        """Put a message into the mailbox. Raises MailboxFull or MailboxClosed."""
        self._mailbox.try_put(message, control=isinstance(message, CONTROL))

    def stats(self) -> EngineStats:
        stats = self._scheduler.stats()
        return msgspec.structs.replace(
            stats,
            recompiles=self._runner.recompiles,
            cache_rebuilds=self._num_rebuilds,
            generated_per_s=self._rate.rate(stats.generated_tokens),
            queue_time=self._queue.reading(),
            step_time=self._runner.step_time,
            mask_time=self._runner.mask_time,
        )

    def speed(self) -> Speed:
        return self._speed.speed

    async def run(self) -> None:
        while True:
            for message in self._mailbox.drain():
                self._take(message)
            if self._mailbox.closed:  # also for a request that has only just come out of it
                self._end_all()
            self._scheduler.expire(asyncio.get_running_loop().time())
            self._settle_pauses()
            self._flush()
            stepped = await self._step()
            self._deliver_outputs()
            if self._operations.is_due and not self._in_flight:
                await self._operate()
                stepped = True
            if self._draining_is_over():
                self._send(Drained())
                return
            if stepped:
                continue
            await self._check_books()
            if not await self._wait_for_message():
                return

    def on_stop_requested(self) -> None:
        self._mailbox.close()

    async def on_stop(self) -> None:
        self._mailbox.close()
        await self._grammars.stop()
        await self._operations.stop()
        # The device cannot be interrupted; what it still computes is dropped.
        for result in self._in_flight:
            result.cancel()
        self._in_flight.clear()

    def _take(self, message: ToReplica | Internal) -> None:
        match message:
            case Admit():
                self._admit(message)
            case Abort(request_id, reason):
                self._scheduler.abort(request_id, reason)
            case LetGo(request_id):
                self._scheduler.let_go(request_id)
            case GrammarDone(request_id, constraint, refusal):
                self._constrain(request_id, constraint, refusal)
            case MaskReady():
                pass  # it was to wake the loop
            case CheckGrammar():
                self._grammars.check(message, self._send)
            case Operate(ask_id, operation):
                self._operations.take(ask_id, operation)
            case OperationPrepared():
                self._operations.prepared(message)
            case FlushCache(ask_id):
                self._flushes.append(ask_id)
            case Pause(_, mode):
                self._paused = True
                self._pauses.append(message)
                if mode == "abort":
                    self._scheduler.abort_all("generation is paused")
            case Resume(ask_id):
                self._paused = False
                self._send(Reply(ask_id))
            case Probe(ask_id):
                self._send(Reply(ask_id))
            case TrackPrefixes():
                self._scheduler.track_prefixes()
            case Drain(timeout_s):
                self._paused = False
                self._drain_deadline_s = asyncio.get_running_loop().time() + timeout_s
            case Stop():
                self._mailbox.close()
            case _:  # Of the replica, not of its scheduler.
                pass

    def _admit(self, message: Admit) -> None:
        deadline_s = None
        if message.timeout_s is not None:
            deadline_s = asyncio.get_running_loop().time() + message.timeout_s
        told = message.told or Told([], 0)
        try:
            self._scheduler.add(
                message.request_id,
                message.prompt_ids,
                message.sampling,
                namespace=message.cache_namespace,
                tenant=message.tenant,
                priority=message.priority,
                deadline_s=deadline_s,
                hold_s=message.hold_s,
                answer_ids=told.token_ids,
                cached_tokens=told.cached_tokens,
            )
        except ValueError as error:
            refused = RowOutput(
                message.request_id, [], b"", len(message.prompt_ids), 0, 0,
                finish=Finish("error", message=str(error)),
            )  # fmt: skip
            self._send(StepOutputs(self._last_step_id, [refused]))
            self._send(Released([message.request_id]))
            return
        self._queue.arrived(message.request_id)
        if message.sampling.is_constrained:
            self._grammars.constrain(message, deadline_s)

    def _on_grammar_done(self, done: GrammarDone) -> None:
        with contextlib.suppress(MailboxClosed):
            self._mailbox.try_put(done, control=True)  # there is always room for it

    def _constrain(
        self, request_id: str, constraint: Constraint | None, refusal: str | None
    ) -> None:
        if constraint is not None:
            constraint.on_prepared = self._wake_from_thread
            self._scheduler.constrain(request_id, constraint)
        elif refusal is not None and self._scheduler.forget(request_id):
            self._send(Refused(request_id, refusal))

    def _wake_from_thread(self) -> None:
        """A late mask is ready: perhaps the loop sleeps, because nothing else was left to do."""
        if not self._wake_is_due:
            self._wake_is_due = True
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._wake_is_due = False
        with contextlib.suppress(MailboxClosed):
            self._mailbox.try_put(MASK_READY, control=True)

    async def _step(self) -> bool:
        """Plan and dispatch one step, take in the result that is due. False if there was
        neither."""
        plan = None
        held = self._paused or self._operations.is_due or self._operations.paused
        if len(self._in_flight) < self._max_in_flight and not held:
            plan = self._plan()
        if plan is not None:
            self._in_flight.append(self._runner.submit(plan))
            self._speed.step_begun(plan, self._loop.time())
        if not self._in_flight:
            return False
        if plan is not None and len(self._in_flight) < self._max_in_flight:
            return True  # Room for one more before the first is waited for.
        try:
            result = await self._in_flight[0]
        except Exception as error:
            await self._recover(error)
            return True
        self._in_flight.popleft()
        begin_s = time.perf_counter()
        elapsed_s = self._speed.step_ended(self._loop.time())
        self._scheduler.apply(result, elapsed_s)
        self._last_step_id = result.step_id
        self._timeline.add(Span("apply", result.step_id, begin_s, time.perf_counter()))
        return True

    def _plan(self) -> StepPlan | None:
        begin_s = time.perf_counter()
        plan = self._scheduler.plan_step()
        self._queue.placed(self._scheduler.take_placed())
        if plan is not None:
            end_s = time.perf_counter()
            span = Span("plan", plan.step_id, begin_s, end_s, plan.num_rows, plan.num_tokens)
            self._timeline.add(span)
        return plan

    async def _check_books(self) -> None:
        """While nothing runs, recount pages, locks and slots; start over if they do not add up."""
        now_s = asyncio.get_running_loop().time()
        if not self._scheduler.idle or now_s < self._next_check_s or self._operations.paused:
            return
        self._next_check_s = now_s + CHECK_PERIOD_S
        try:
            self._scheduler.check()
        except (AccountingError, SchedulingError):
            log.exception("the books do not add up; rebuilding the cache")
            await self._start_over()

    async def _recover(self, error: Exception) -> None:
        """A step failed, so the donated cache is gone: start over with an empty one."""
        log.error("a step failed; rebuilding the cache", exc_info=error)
        failed = list(self._in_flight)
        self._in_flight.clear()
        self._speed.forget_steps()
        await asyncio.wait(failed)
        for other in failed[1:]:
            other.exception()  # Seen: it fails with the first.
        await self._start_over()

    async def _start_over(self) -> None:
        await self._runner.reset()
        self._scheduler.restart()
        self._num_rebuilds += 1

    def _on_prepared(self, prepared: OperationPrepared) -> None:
        with contextlib.suppress(MailboxClosed):
            self._mailbox.try_put(prepared, control=True)

    async def _operate(self) -> None:
        """Nothing runs: change what is on the devices. What was running is queued again."""
        if await self._operations.carry_out():
            self._scheduler.restart(failed=False)

    def _deliver_outputs(self) -> None:
        begin_s = time.perf_counter()
        outputs = self._scheduler.take_outputs()
        if outputs.rows:
            rows = [self._operations.signed(row) for row in outputs.rows]
            self._send(StepOutputs(self._last_step_id, rows))
        if outputs.released:
            self._queue.gone(outputs.released)
            self._grammars.forget(outputs.released)
            self._send(Released(outputs.released))
        changes = self._scheduler.take_prefix_changes()
        if changes is not None:
            added, dropped = b"".join(changes.added), b"".join(changes.dropped)
            self._send(PrefixChanges(added, dropped, changes.cleared))
        if outputs.rows or outputs.released:
            self._timeline.add(Span("emit", self._last_step_id, begin_s, time.perf_counter()))

    def _settle_pauses(self) -> None:
        """Answer those who asked for a pause, once nothing is on the device."""
        if not self._pauses or self._in_flight:
            return
        if self._paused and any(pause.mode == "retract" for pause in self._pauses):
            self._scheduler.retract_all()
        for pause in self._pauses:
            self._send(Reply(pause.ask_id))
        self._pauses.clear()

    def _flush(self) -> None:
        """Flush if that was asked for, or say why not.

        A step may still be on the device when the last answer is complete. That one is waited for:
        what it holds would enter the cache after the flush.
        """
        if self._paused:
            busy, settled = self._scheduler.num_placed > 0, not self._in_flight
        else:
            busy, settled = self._scheduler.busy, self._scheduler.idle
        if not self._flushes or not (busy or settled):
            return
        if not busy:
            self._scheduler.flush_cache()
        for ask_id in self._flushes:
            self._send(Reply(ask_id, BUSY if busy else None))
        self._flushes.clear()

    def _draining_is_over(self) -> bool:
        if self._drain_deadline_s is None:
            return False
        if asyncio.get_running_loop().time() >= self._drain_deadline_s:
            self._end_all()
            self._deliver_outputs()
        return self._scheduler.idle and not len(self._mailbox)

    def _end_all(self) -> None:
        self._scheduler.shut_down("the server is stopping")

    async def _wait_for_message(self) -> bool:
        """Sleep until there is a message, or until a request that waits is due to expire or the
        drain to end. False if no message will come."""
        deadlines_s = (self._scheduler.next_deadline_s, self._drain_deadline_s)
        due_s = min((at_s for at_s in deadlines_s if at_s is not None), default=None)
        try:
            async with asyncio.timeout_at(due_s):
                self._take(await self._mailbox.get())
        except MailboxClosed:
            return False
        except TimeoutError:
            pass
        return True
