"""Cancels a coroutine at each of its awaits in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


async def cancel_at_every_await(
    make: Callable[[], Coroutine[Any, Any, Any]],
    check: Callable[[bool], Awaitable[None]],
    *,
    max_turns: int = 400,
) -> int:
    """Run `make()` again and again, cancelled one turn of the event loop later each time, until it
    ends before its cancellation. `check(was_cancelled)` runs after each. Returns how often it was
    cancelled.
    """
    for num_turns in range(max_turns):
        task = asyncio.create_task(make())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await check(task.cancelled())
        if not task.cancelled():
            task.result()
            return num_turns
    raise AssertionError(f"still running after {max_turns} turns")
