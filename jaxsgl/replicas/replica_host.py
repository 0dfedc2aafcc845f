"""The replica's end of a link: builds the replica, feeds it and reports for it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from jaxsgl.actors.mailbox import MailboxClosed
from jaxsgl.actors.messages import (
    Drain,
    Report,
    Speed,
    StartFailed,
    Stop,
    ToFront,
    ToReplica,
)
from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.interface import EngineStats
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.tokenizer import TokenizerError
from jaxsgl.world.errors import WorldLost

log = logging.getLogger(__name__)


_FOR_A_PERSON = (ConfigError, CheckpointError, TokenizerError, WorldLost)
"""Errors whose message says in one line what a person can mend."""


class Outcome(enum.IntEnum):
    """How a replica ended; a process ends with it as its exit code."""

    ORDERED = 0
    """It was told to stop, or has drained."""
    START_FAILED = 64
    """The front was told why."""
    FAILED = 70
    """Beyond repair while serving."""
    ORPHANED = 71
    """The front has gone."""
    WORLD_LOST = 72
    """Another process of its world has gone."""


class ReplicaEndpoint(Protocol):
    """A replica that is ready."""

    def deliver(self, message: ToReplica) -> None:
        """Never blocks. Raises MailboxClosed once the replica is ending."""
        ...

    async def run(self) -> None:
        """Returns when the replica has stopped or drained; raises if it failed beyond repair."""
        ...

    def stats(self) -> EngineStats: ...

    def speed(self) -> Speed: ...


type Send = Callable[[ToFront], None]
"""Never blocks."""

type Factory = Callable[[EngineConfig, Send], Awaitable[ReplicaEndpoint]]
"""Builds a replica; may send Progress meanwhile, and has sent Ready when it returns."""


class ReplicaHost:
    """Runs one replica from its start to its end: the receiver of what the front sends.

    Messages that come before the replica is ready wait for it.
    """

    def __init__(self, factory: Factory, *, report_period_s: float = 1.0) -> None:
        self._factory = factory
        self._report_period_s = report_period_s
        self._endpoint: ReplicaEndpoint | None = None
        self._early: list[ToReplica] = []
        self._task: asyncio.Task[Outcome] | None = None
        self._verdict: Outcome | None = None

    def on_message(self, message: ToReplica) -> None:
        if self._endpoint is not None:
            # One that is ending needs to hear no more: its requests end with it.
            with contextlib.suppress(MailboxClosed):
                self._endpoint.deliver(message)
        elif isinstance(message, Stop | Drain):  # nothing to finish: it is still loading
            self._end_now(Outcome.ORDERED)
        else:
            self._early.append(message)

    def on_closed(self, cause: Exception | None) -> None:
        self._end_now(Outcome.ORPHANED)

    async def run(self, config: EngineConfig, send: Send) -> Outcome:
        """Build the replica and serve until the end. Called once, in a task of its own."""
        self._task = asyncio.current_task()
        if self._verdict is not None:
            return self._verdict
        try:
            return await self._build_and_serve(config, send)
        except asyncio.CancelledError:
            if self._verdict is None:
                raise
            return self._verdict

    def _end_now(self, verdict: Outcome) -> None:
        if self._verdict is None:
            self._verdict = verdict
            if self._task is not None:
                self._task.cancel()

    async def _build_and_serve(self, config: EngineConfig, send: Send) -> Outcome:
        try:
            endpoint = await self._factory(config, send)
        except _FOR_A_PERSON as error:
            send(StartFailed(str(error)))
            return Outcome.START_FAILED
        except Exception as error:
            log.exception("the replica could not be built")
            send(StartFailed(_one_line(error)))
            return Outcome.START_FAILED
        self._endpoint = endpoint
        for message in self._early:
            self.on_message(message)
        reporting = asyncio.create_task(self._report(endpoint, send), name="report")
        try:
            await endpoint.run()
        except WorldLost as error:
            log.error("all processes of this replica start anew: %s", error)
            return Outcome.FAILED if error.by_itself else Outcome.WORLD_LOST
        except Exception:
            log.exception("the replica failed")
            return Outcome.FAILED
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})
        return Outcome.ORDERED

    async def _report(self, endpoint: ReplicaEndpoint, send: Send) -> None:
        while True:
            send(Report(endpoint.stats(), endpoint.speed()))
            await asyncio.sleep(self._report_period_s)


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
