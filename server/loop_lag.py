"""How late the event loop runs what is due: the first thing to look at when everything is slow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from aiohttp import web

from server.context import CONTEXT

PERIOD_S = 0.05


async def watch_loop_lag(app: web.Application) -> AsyncGenerator[None, None]:
    """For `cleanup_ctx`: observes the lag for as long as the application lives."""
    task = asyncio.create_task(_observe_lag(app), name="event-loop lag")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _observe_lag(app: web.Application) -> None:
    metrics = app[CONTEXT].metrics
    while True:
        before = time.perf_counter()
        await asyncio.sleep(PERIOD_S)
        metrics.event_loop_lag(max(0.0, time.perf_counter() - before - PERIOD_S))
