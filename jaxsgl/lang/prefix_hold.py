"""A text that stays computed while others continue it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

HOLD_S = 60.0
"""How long the text before a fork is kept for it at most."""


class PrefixHold[T]:
    """Has a text computed and kept, from now on until `release`. Make one in the back end's loop.

    Whoever does not wait for `computed` need not know of its errors: what continues the text can
    do without a hold, or meets the same error itself.
    """

    def __init__(self, computing: Coroutine[Any, Any, T], let_go: Callable[[], None]) -> None:
        """`computing` ends when the text is kept; `let_go` ends that, idempotently. Both run in
        the loop. What is cancelled or fails is let go of too."""
        self._loop = asyncio.get_running_loop()
        self._let_go = let_go
        self._computing = asyncio.create_task(computing)
        self._computing.add_done_callback(self._on_computed)

    async def computed(self) -> T:
        """Wait until the text is computed. Raises what `computing` does. Cancelled, it releases."""
        return await self._computing

    def release(self) -> None:
        """Nobody will continue the text any more. For any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and everything with it
            self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        self._computing.cancel()  # nothing happens if it is done
        self._let_go()

    def _on_computed(self, computing: asyncio.Task[T]) -> None:
        if computing.cancelled() or computing.exception() is not None:
            self._let_go()
