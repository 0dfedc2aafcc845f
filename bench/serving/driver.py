"""Drives the load: who is sent when, when sending ends, and what becomes of what is open then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from bench.serving.client import Clock
from bench.serving.datasets import Conversation, Turn
from bench.serving.records import SILENT, UNFINISHED, Record

SILENCE_S = 30.0
"""A server from which nobody heard anything for so long has failed, and is not just slow."""

Send = Callable[[Record, Turn], Awaitable[None]]
"""Sends one turn of a conversation and fills its record in."""
StartConversation = Callable[[], Send]


@dataclass(frozen=True)
class LoadShape:
    """`arrivals` None is a closed loop: `max_concurrency` conversations are always open, and a
    request is due when it is sent. Otherwise it is an open one: conversations begin at those
    moments, whatever the server does; `max_concurrency` then bounds the requests that are on their
    way at once, and the wait for a place counts as latency."""

    arrivals: Iterable[float] | None
    max_concurrency: int | None
    duration_s: float | None
    """No request is sent later than this."""
    drain_s: float
    """What is open when sending is over is cut off after so many seconds."""
    think_s: float = 0.0
    """Between an answer and the next turn of its conversation."""


class Load:
    """One run of the load. The records of all requests that were due are in `records`, also while
    it runs and if it is cut off."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        start_conversation: StartConversation,
        shape: LoadShape,
        clock: Clock,
    ) -> None:
        self._conversations = conversations
        self._start_conversation = start_conversation
        self._shape = shape
        self._clock = clock
        self._over = asyncio.Event()
        """Nothing more is sent."""
        self._to_send = sum(map(len, conversations))
        self._tasks: set[asyncio.Task[None]] = set()
        self._feeder: asyncio.Task[None] | None = None
        places = shape.max_concurrency if shape.arrivals is not None else None
        self._place: AbstractAsyncContextManager[object] = (
            nullcontext() if places is None else asyncio.Semaphore(places)
        )
        self.records: list[Record] = []
        self.interrupted = False
        self.sending_s = 0.0
        """How long requests were sent."""
        self.num_open_at_end = 0
        """Requests that were open when sending was over."""

    @property
    def sending_is_over(self) -> bool:
        return self._over.is_set()

    async def run(self) -> None:
        """Until every answer is there or cut off.

        When cancelled, as Ctrl-C does, it cuts off what is open and returns with what there is.
        """
        self._begin()
        try:
            await self._wait(self._over.wait(), self._shape.duration_s)
        except asyncio.CancelledError:
            self._interrupt()
        self._over.set()
        self.sending_s = self._clock.now_s()
        self.num_open_at_end = sum(record.end_s is None for record in self.records)
        if self._feeder is not None:
            self._feeder.cancel()
        await self._drain()

    async def _wait(self, work: Awaitable[object], until_s: float | None) -> None:
        """For `work`, but not longer than until that moment."""
        tasks = [asyncio.ensure_future(work)]
        if until_s is not None:
            tasks.append(asyncio.ensure_future(self._clock.sleep_until(until_s)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _interrupt(self) -> None:
        self.interrupted = True
        if (task := asyncio.current_task()) is not None:
            task.uncancel()

    def _begin(self) -> None:
        if not self._to_send:
            self._over.set()
        numbered = iter(enumerate(self._conversations))
        if self._shape.arrivals is not None:
            self._feeder = asyncio.create_task(self._feed(numbered, self._shape.arrivals))
            return
        for _ in range(self._shape.max_concurrency or 1):
            self._spawn(self._work(numbered))

    async def _feed(
        self, numbered: Iterator[tuple[int, Conversation]], moments: Iterable[float]
    ) -> None:
        for (number, conversation), due_s in zip(numbered, moments, strict=False):
            await self._clock.sleep_until(due_s)
            self._spawn(self._converse(number, conversation, due_s))

    async def _work(self, numbered: Iterator[tuple[int, Conversation]]) -> None:
        for number, conversation in numbered:
            await self._converse(number, conversation, self._clock.now_s())
            if self._over.is_set():
                return

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._end_if_broken)
        self._tasks.add(task)

    def _end_if_broken(self, task: asyncio.Task[None]) -> None:
        """`send` does not raise for what a server does: end the load, `_drain` raises."""
        if not task.cancelled() and task.exception() is not None:
            self._over.set()

    async def _converse(self, number: int, conversation: Conversation, due_s: float) -> None:
        send = self._start_conversation()
        for turn_number, turn in enumerate(conversation):
            record = Record(number, turn_number, due_s)
            self.records.append(record)
            async with self._place:
                if self._over.is_set():
                    _cut_off(record, UNFINISHED, "sending was over before it had a place")
                    record.end_s = self._clock.now_s()
                    return
                self._count_sent(1)
                await send(record, turn)
            if record.error is not None:
                self._count_sent(len(conversation) - turn_number - 1)
                return
            due_s = self._clock.now_s() + self._shape.think_s
            if turn_number + 1 < len(conversation):
                await self._clock.sleep_until(due_s)
                if self._over.is_set():
                    return

    def _count_sent(self, num_requests: int) -> None:
        """So many were sent, or will never be because the turn before them failed."""
        self._to_send -= num_requests
        if self._to_send == 0:
            self._over.set()

    async def _drain(self) -> None:
        begin_s = self._clock.now_s()
        if self._tasks and not self.interrupted:
            try:
                await self._wait(asyncio.wait(self._tasks), begin_s + self._shape.drain_s)
            except asyncio.CancelledError:
                self._interrupt()
        late = {task for task in self._tasks if not task.done()}
        kind, detail = UNFINISHED, "cut off at the end of the drain"
        silent_since_s = self._clock.now_s() - SILENCE_S
        if silent_since_s >= begin_s and not self._heard_since(silent_since_s):
            kind, detail = SILENT, f"nothing came from the server for {SILENCE_S:g} s"
        cut_off = [r for r in self.records if r.end_s is None and r.error is None]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for record in cut_off:
            _cut_off(record, kind, detail)
            record.end_s = record.end_s or self._clock.now_s()
        for task in self._tasks - late:
            task.result()

    def _heard_since(self, moment_s: float) -> bool:
        """Whether an event or an end of an answer came after `moment_s`."""
        return any(
            (record.event_s and record.event_s[-1] > moment_s)
            or (record.end_s is not None and record.end_s > moment_s)
            for record in self.records
        )


def _cut_off(record: Record, kind: str, detail: str) -> None:
    record.error = kind
    record.detail = detail
