"""The responses that clients may ask for again, and those that nobody waits for."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
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
    """Forgets complete responses beyond MAX_BYTES: the oldest of whoever has most there, so that
    nobody can drive out what others keep. Of running ones there are at most MAX_RUNNING in the
    background."""

    max_bytes: int = MAX_BYTES
    _kept: dict[str, Kept] = field(default_factory=dict[str, Kept])
    _complete: dict[str, OrderedDict[str, None]] = field(
        default_factory=dict[str, OrderedDict[str, None]]
    )
    """Ids of complete responses by tenant, the oldest first."""
    _num_bytes: Counter[str] = field(default_factory=Counter[str])
    """By tenant."""

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
        self._num_bytes[kept.tenant] += kept.num_bytes
        self._complete.setdefault(kept.tenant, OrderedDict())[response.id] = None
        while self._num_bytes.total() > self.max_bytes:
            ((tenant, _),) = self._num_bytes.most_common(1)
            self.forget(next(iter(self._complete[tenant])))

    def forget(self, response_id: str) -> None:
        kept = self._kept.pop(response_id, None)
        if kept is not None and kept.num_bytes:
            self._num_bytes[kept.tenant] -= kept.num_bytes
            del self._complete[kept.tenant][response_id]

    async def close(self) -> None:
        """End what runs in the background."""
        tasks = [kept.task for kept in self._kept.values() if kept.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
