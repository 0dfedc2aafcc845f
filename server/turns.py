"""How many clients an event loop listens to before it goes on with what they asked.

asyncio looks at every socket that is ready before it runs what came of the first. When thousands of
requests arrive at once, all are read before one is answered. Here a turn reads a few of them: an
answer follows its request at once, and those that are not read yet wait in the kernel. Health
checks are told from the rest by their first bytes, and do not wait.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import socket
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from selectors import EVENT_READ, SelectorKey
from typing import Any

from server.garbage import collect_when_quiet, no_long_passes

MAX_NEWEST = 18
MAX_OLDEST = 6
"""Clients that are listened to in one turn, when there are more. Mostly the newest: those who have
waited longest may have given up."""
MAX_URGENT = 8
"""Health checks of one turn that need not wait."""

_HEALTH = re.compile(rb"(?:GET|HEAD) [^ ?]*/(?:health|ready)[ ?]")
_PEEK_BYTES = 256


class Turns(selectors.BaseSelector):
    """A selector for event loops. Sockets that are not in `clients` are looked at every turn; so is
    a client that wants to be written to, whose answer is under way.

    Who has to wait is taken off the kernel's list: a turn costs the same, however many wait.
    """

    def __init__(self) -> None:
        self.clients: set[int] = set()
        """File numbers."""
        self._listening = selectors.DefaultSelector()
        self._waiting: OrderedDict[int, SelectorKey] = OrderedDict()
        """By file number, in the order of arrival; not in `_listening`."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if _number(fileobj) in self._waiting:
            raise KeyError(f"{fileobj!r} is registered")
        return self._listening.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> SelectorKey:
        return self._waiting.pop(_number(fileobj), None) or self._listening.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        if self._waiting.pop(_number(fileobj), None) is not None:
            return self._listening.register(fileobj, events, data)
        return self._listening.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> SelectorKey:
        return self._waiting.get(_number(fileobj)) or self._listening.get_key(fileobj)

    def get_map(self) -> Mapping[Any, SelectorKey]:
        keys = (*self._listening.get_map().values(), *self._waiting.values())
        return {key.fileobj: key for key in keys}

    def close(self) -> None:
        self._waiting.clear()
        self._listening.close()

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        ready = self._listening.select(0 if self._waiting else timeout)
        if not self._waiting and len(ready) <= MAX_NEWEST + MAX_OLDEST:
            return ready
        heard: list[tuple[SelectorKey, int]] = []
        num_urgent = 0
        for key, events in ready:
            if key.fd not in self.clients or key.events != EVENT_READ:
                heard.append((key, events))
            elif num_urgent < MAX_URGENT and is_health_check(key.fd):
                num_urgent += 1
                heard.append((key, events))
            else:
                self._listening.unregister(key.fileobj)
                self._waiting[key.fd] = key
        for newest in (True,) * MAX_NEWEST + (False,) * MAX_OLDEST:
            if self._waiting:
                _, key = self._waiting.popitem(last=newest)
                self._listening.register(key.fileobj, key.events, key.data)
                heard.append((key, EVENT_READ))
        return heard


def _number(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def is_health_check(number: int) -> bool:
    """Whether the first bytes that a socket has to be read ask for /health or /ready; they stay
    there."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=number)
    try:
        return bool(_HEALTH.match(sock.recv(_PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)))
    except OSError:
        return False
    finally:
        sock.detach()  # it is somebody else's


def run_in_turns[T](main: Callable[[Turns], Coroutine[Any, Any, T]]) -> T:
    """As `asyncio.run(main(turns))`, on a loop that listens by `turns` and is not held up by
    garbage collection while there are many clients."""
    turns = Turns()

    async def whole() -> T:
        collecting = asyncio.create_task(
            collect_when_quiet(lambda: len(turns.clients)), name="garbage"
        )
        try:
            return await main(turns)
        finally:
            collecting.cancel()

    with (
        no_long_passes(),
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner,
    ):
        return runner.run(whole())
