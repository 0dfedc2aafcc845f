"""A clock that moves only when nobody has anything left to do."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from itertools import count
from typing import Any

from bench.serving.client import Clock

TURNS_TO_SETTLE = 40
"""Rounds of the event loop after which everything that is not asleep has run; there is no I/O."""


class VirtualClock(Clock):
    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def now_s(self) -> float:
        return self._now_s

    async def sleep_until(self, moment_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (moment_s, next(self._numbers), woken))
        await woken

    async def sleep(self, delay_s: float) -> None:
        await self.sleep_until(self._now_s + delay_s)

    async def play(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end, waking sleepers in the order of their moments."""
        task = asyncio.create_task(work)
        while True:
            for _ in range(TURNS_TO_SETTLE):
                await asyncio.sleep(0)
            if task.done():
                return task.result()
            assert self._sleepers, "nothing will ever happen again"
            moment_s, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self._now_s = max(self._now_s, moment_s)
                woken.set_result(None)
