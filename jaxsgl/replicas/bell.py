"""Wakes whoever waits for something to change."""

from __future__ import annotations

import asyncio


class Bell:
    """Look first, then wait: between the two, in one turn of the event loop, nothing is missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()
