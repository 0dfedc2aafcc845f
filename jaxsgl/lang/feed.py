"""Text that grows in one thread and is followed in others."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator

type Put = Callable[[str | None], object]
"""Takes each piece of text; None is the end."""


class Feed:
    """Everybody who follows it gets all of it, whenever they begin. All methods are thread-safe."""

    __slots__ = ("_ended", "_followers", "_lock", "_pieces")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[str] = []
        self._followers: list[Put] = []
        self._ended = False

    def add(self, text: str) -> None:
        with self._lock:
            if text and not self._ended:
                self._pieces.append(text)
                for put in self._followers:
                    put(text)

    def end(self) -> None:
        """There will be no more. Idempotent."""
        with self._lock:
            if not self._ended:
                self._ended = True
                followers, self._followers = self._followers, []
                for put in followers:
                    put(None)

    def follow(self) -> Generator[str]:
        """Pieces as they come, until the end."""
        items: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._join(items.put)
        try:
            while (piece := items.get()) is not None:
                yield piece
        finally:
            self._leave(items.put)

    async def async_follow(self) -> AsyncGenerator[str]:
        """`follow` for a reader in an event loop."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            loop.call_soon_threadsafe(items.put_nowait, piece)

        self._join(put)
        try:
            while (piece := await items.get()) is not None:
                yield piece
        finally:
            self._leave(put)

    def _join(self, put: Put) -> None:
        with self._lock:
            for piece in self._pieces:
                put(piece)
            if self._ended:
                put(None)
            else:
                self._followers.append(put)

    def _leave(self, put: Put) -> None:
        with self._lock:
            if put in self._followers:
                self._followers.remove(put)
