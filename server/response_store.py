"""The responses that clients may ask for again, and those that nobody waits for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from server.messages import Message
from server.responses_schema import ResponseOut

MAX_BYTES = 64 << 20
MAX_RUNNING = 1024


@dataclass(slots=True)
class Kept:
    """One response."""

    current: Callable[[], ResponseOut]
    """It, or what there is of it so far."""
    before: list[Message]
    """The conversation up to its answer, without instructions."""
    tenant: str = ""
    """Whose it is: to others it does not exist."""
    task: asyncio.Task[None] | None = None
    """What generates it, if nobody waits for it."""
    num_bytes: int = 0


@dataclass(slots=True)
class ResponseStore:
    """Forgets the oldest complete responses beyond MAX_BYTES. Of running ones there are at most
    MAX_RUNNING in the background."""

    max_bytes: int = MAX_BYTES
    _kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict[str, Kept])
    _num_bytes: int = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def has_room(self) -> bool:
        """Whether another response may run in the background."""
        return sum(kept.task is not None for kept in self._kept.values()) < MAX_RUNNING

    def begin(self, response_id: str, kept: Kept) -> None:
        self._kept[response_id] = kept

    def get(self, response_id: str, tenant: str = "") -> Kept | None:
        kept = self._kept.get(response_id)
        return kept if kept is not None and kept.tenant == tenant else None

    def end(self, response: ResponseOut) -> None:
        """It is complete: from now on it counts, and may be forgotten."""
        kept = self._kept.get(response.id)
        if kept is None:
            return
        kept.task, kept.current = None, lambda: response
        kept.num_bytes = len(msgspec.json.encode((response, kept.before)))
        self._num_bytes += kept.num_bytes
        self._kept.move_to_end(response.id)
        complete = [name for name, each in self._kept.items() if each.num_bytes]
        for name in complete:
            if self._num_bytes <= self.max_bytes:
                break
            self.forget(name)

    def forget(self, response_id: str) -> None:
        kept = self._kept.pop(response_id, None)
        if kept is not None:
            self._num_bytes -= kept.num_bytes

    async def close(self) -> None:
        """End what runs in the background."""
        tasks = [kept.task for kept in self._kept.values() if kept.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
