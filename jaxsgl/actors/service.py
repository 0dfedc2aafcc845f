"""Something with a life: started, running in a task of its own, stopped or dead."""

from __future__ import annotations

import asyncio
import enum
import logging

log = logging.getLogger(__name__)

_CANCEL_GRACE_S = 5.0
"""What a cancelled task gets for its clean-up before it is given up."""


class State(enum.Enum):
    CREATED = enum.auto()
    STARTING = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()
    DEAD = enum.auto()


class ServiceDead(Exception):
    """A service has ended; the message says which, and why if that is known."""


class Service:
    """Base of what is started, supervised and stopped. It lives once; construct it in a running
    loop.

    A subclass overrides `on_start`, `run` and `on_stop`, all of which run in one task. `died` is
    done when that task has ended and cleaned up; its result is the exception that ended it (logged
    too), or None after an end in order.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.died: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._state = State.CREATED
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        return self._state

    async def on_start(self) -> None:
        """Become ready. What it raises, `start` raises."""

    async def run(self) -> None:
        """Serve until there is nothing more to do. What it raises is the cause of death."""
        raise NotImplementedError

    def on_stop_requested(self) -> None:
        """Make `run` return soon. Called at most once, while running."""

    async def on_stop(self) -> None:
        """Give back what `on_start` and `run` took, however they ended. Must not wait long."""

    def on_dead(self, cause: Exception | None) -> None:
        """Last words, after `on_stop`: tell those who still wait for an answer."""

    async def start(self) -> None:
        """Returns when `on_start` has. If that fails or this is cancelled, nothing is left
        running."""
        if self._state is not State.CREATED:
            raise RuntimeError(f"{self.name} lives only once")
        self._state = State.STARTING
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(started), name=self.name)
        self._task.add_done_callback(lambda task: self._on_end(task, started))
        try:
            await started
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, timeout_s: float) -> None:
        """Returns when the service is dead: by itself within `timeout_s` seconds, cancelled after
        them.

        A service that is not running yet is cancelled at once. A second call with a shorter time
        shortens the first. Never raises what the service died of.
        """
        if self._task is None:
            self._bury(None)
            return
        if self._state is State.RUNNING:
            self._state = State.STOPPING
            self.on_stop_requested()
        elif self._state is State.STARTING:
            timeout_s = 0
        try:
            if timeout_s > 0:
                await asyncio.wait({self._task}, timeout=timeout_s)
        finally:
            self._task.cancel()
        _, alive = await asyncio.wait({self._task}, timeout=_CANCEL_GRACE_S)
        if alive:
            log.error("%s does not end", self.name)

    async def _live(self, started: asyncio.Future[None]) -> None:
        try:
            await self.on_start()
            self._state = State.RUNNING
            if not started.done():  # its starter may have been cancelled in this very moment
                started.set_result(None)
            await self.run()
        finally:
            try:
                await self.on_stop()
            except Exception:
                log.exception("%s: clean-up failed", self.name)

    def _on_end(self, task: asyncio.Task[None], started: asyncio.Future[None]) -> None:
        error = None if task.cancelled() else task.exception()
        cause = error if isinstance(error, Exception) else None
        if not started.done():
            started.set_exception(cause or ServiceDead(f"{self.name} was stopped"))
        elif isinstance(cause, ServiceDead):
            log.error("%s", cause)  # says all there is to know
        elif cause is not None:
            log.error("%s died", self.name, exc_info=cause)
        self._bury(cause)

    def _bury(self, cause: Exception | None) -> None:
        self._state = State.DEAD
        if not self.died.done():
            self.died.set_result(cause)
            self.on_dead(cause)
