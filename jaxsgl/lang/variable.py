"""A variable of a program: a value that is on its way, or the error that came in its place."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from jaxsgl.lang.feed import Feed


class Variable:
    """Set or failed once, by the state that declared it; read from any thread."""

    __slots__ = ("_result", "feed", "meta", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.meta: dict[str, Any] = {}
        """What the back end said about the answer; complete when the variable is set."""
        self.feed = Feed()
        """Its text as it is written."""
        self._result: Future[Any] = Future()

    @property
    def is_done(self) -> bool:
        return self._result.done()

    def set(self, value: Any, meta: dict[str, Any] | None = None) -> None:
        if not self._result.done():
            self.meta = meta or {}
            self._result.set_result(value)
            self.feed.end()

    def fail(self, error: BaseException) -> None:
        """Nothing happens if it is set."""
        if not self._result.done():
            self._result.set_exception(error)
            self.feed.end()

    def get(self, timeout_s: float | None = None) -> Any:
        """Wait for the value. Raises the error that came in its place, or TimeoutError."""
        return self._result.result(timeout_s)

    async def wait(self) -> Any:
        """`get` for a reader in an event loop."""
        return await asyncio.shield(asyncio.wrap_future(self._result))
