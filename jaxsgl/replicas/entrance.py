"""Who is on the way in."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Entrance:
    """A context manager that many tasks may be in at once; it counts them."""

    def __init__(self) -> None:
        self.num_inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def wait_until_empty(self) -> None:
        await self._empty.wait()

    def __enter__(self) -> None:
        self.num_inside += 1
        self._empty.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.num_inside -= 1
        if not self.num_inside:
            self._empty.set()
