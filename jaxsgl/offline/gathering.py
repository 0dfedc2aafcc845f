"""Several coroutines, one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def gather_or_cancel[T](coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run them side by side; the results, in order.

    The first exception is raised as it is, once the others are cancelled and cleaned up.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
