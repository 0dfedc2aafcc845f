"""Starts and ends profiles of the devices, one at a time, beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from jaxsgl.actors.messages import Reply, StartProfile, StopProfile, ToFront

IN_PROGRESS = "a profile is being taken"
NONE_TAKEN = "no profile is being taken"

log = logging.getLogger(__name__)


class ProfileDesk:
    """Answers every message with a Reply. A profile ends by itself when its time is over: one that
    is forgotten would grow without end."""

    def __init__(
        self,
        send: Callable[[ToFront], None],
        *,
        start: Callable[[str], None],
        stop: Callable[[], None],
    ) -> None:
        """`start(folder)` and `stop()` may block; they are called in turn, from threads."""
        self._send = send
        self._start = start
        self._stop = stop
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Task[None] | None = None
        """Set while a profile is being taken."""
        self._turn = asyncio.Lock()

    def take(self, message: StartProfile | StopProfile) -> None:
        """Never blocks."""
        task = asyncio.create_task(self._answer(message), name="profile")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End the profile that is being taken, if one is. Nothing may be taken after this."""
        await asyncio.gather(*self._tasks)
        with contextlib.suppress(Exception):
            await self._end()

    async def _answer(self, message: StartProfile | StopProfile) -> None:
        try:
            if isinstance(message, StartProfile):
                error = await self._begin(message)
            else:
                error = None if await self._end() else NONE_TAKEN
        except Exception as failure:  # the profiler's own, such as a folder that it cannot write to
            log.exception("the profiler failed")
            error = f"the profiler failed: {type(failure).__name__}"
        self._send(Reply(message.ask_id, error))

    async def _begin(self, message: StartProfile) -> str | None:
        async with self._turn:
            if self._timer is not None:
                return IN_PROGRESS
            await asyncio.to_thread(self._start, message.folder)
            self._timer = asyncio.create_task(self._end_later(message.duration_s), name="profile")
        return None

    async def _end_later(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)
        log.info("the profile has had its %g s", duration_s)
        await self._end(on_time=True)

    async def _end(self, *, on_time: bool = False) -> bool:
        """False if there was none to end."""
        async with self._turn:
            timer, self._timer = self._timer, None
            if timer is None:
                return False
            if not on_time:
                timer.cancel()
            await asyncio.to_thread(self._stop)
        return True
