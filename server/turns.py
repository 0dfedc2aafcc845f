"""How many clients an event loop listens to before it goes on with what they asked.

asyncio looks at every socket that is ready before it runs what came of the first. When thousands of
requests arrive at once, all are read before one is answered. Here a turn reads a few of them: an
answer follows its request at once, and those that are not read yet wait in the kernel.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

MAX_NEWEST = 24
MAX_OLDEST = 8
"""Sockets of clients that are looked at in one turn, when there are more. Mostly the newest: those
who have waited longest may have given up, and a health check is always new."""


class Turns(selectors.DefaultSelector):
    """A selector for event loops. Sockets that are not in `clients` are looked at every turn."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: set[int] = set()
        """File numbers."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        if len(ready) <= MAX_NEWEST + MAX_OLDEST:
            return ready
        of_clients = [entry for entry in ready if entry[0].fd in self.clients]
        if len(of_clients) <= MAX_NEWEST + MAX_OLDEST:
            return ready
        others = [entry for entry in ready if entry[0].fd not in self.clients]
        # The kernel appends what becomes ready to its list.
        return others + of_clients[-MAX_NEWEST:] + of_clients[:MAX_OLDEST]


def run_in_turns[T](main: Callable[[Turns], Coroutine[Any, Any, T]]) -> T:
    """As `asyncio.run(main(turns))`, on a loop that listens by `turns`."""
    turns = Turns()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
        return runner.run(main(turns))
