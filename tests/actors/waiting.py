"""Waits for something that must happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Let the event loop go on until `condition()` holds. TimeoutError if it does not."""
    async with asyncio.timeout(timeout_s):
        for _ in range(100):  # mostly it takes a few turns
            if condition():
                return
            await asyncio.sleep(0)
        while not condition():  # noqa: ASYNC110 - any condition, without its cooperation
            await asyncio.sleep(0.002)
