"""A bounded queue with a lane for urgent messages and an explicit end."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


class MailboxFull(Exception):
    """The data lane has no room."""


class MailboxClosed(Exception):
    """Nothing more can be put in, or nothing more will come out."""


@dataclass(frozen=True, slots=True)
class MailboxStatistics:
    num_waiting: int
    """Messages in both lanes now."""
    max_waiting: int
    """The most there ever were."""
    num_received: int
    num_refused: int
    """Messages that `try_put` had no room for."""


class Mailbox[M]:
    """Messages for one receiver, in the order they came; the control lane goes before the data
    lane.

    Back-pressure: the data lane holds `capacity` messages. When it is full `put` waits and
    `try_put` raises MailboxFull. The control lane always takes a message: it is for the few, such
    as an order to stop, that must not wait behind the many.

    Once closed it takes nothing more (MailboxClosed); what is in it can still be got, and then
    `get` raises MailboxClosed.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a mailbox holds at least one message")
        self._capacity = capacity
        self._control: deque[M] = deque()
        self._data: deque[M] = deque()
        self._closed = False
        self._changed_for_receiver = asyncio.Event()
        self._changed_for_senders = asyncio.Event()
        self._max_waiting = 0
        self._num_received = 0
        self._num_refused = 0

    def __len__(self) -> int:
        return len(self._control) + len(self._data)

    @property
    def closed(self) -> bool:
        return self._closed

    def statistics(self) -> MailboxStatistics:
        return MailboxStatistics(
            len(self), self._max_waiting, self._num_received, self._num_refused
        )

    async def put(self, message: M, *, control: bool = False) -> None:
        """Wait for room, then put. Cancelled while it waits, it has put nothing."""
        while not control and not self._closed and len(self._data) >= self._capacity:
            self._changed_for_senders.clear()
            await self._changed_for_senders.wait()
        self.try_put(message, control=control)

    def try_put(self, message: M, *, control: bool = False) -> None:
        if self._closed:
            raise MailboxClosed
        if control:
            self._control.append(message)
        elif len(self._data) < self._capacity:
            self._data.append(message)
        else:
            self._num_refused += 1
            raise MailboxFull
        self._num_received += 1
        self._max_waiting = max(self._max_waiting, len(self))
        self._changed_for_receiver.set()

    async def get(self) -> M:
        """The next message. Cancelled while it waits, it has taken nothing."""
        while not len(self):
            if self._closed:
                raise MailboxClosed
            self._changed_for_receiver.clear()
            await self._changed_for_receiver.wait()
        self._changed_for_senders.set()
        return (self._control or self._data).popleft()

    def drain(self) -> list[M]:
        """Everything that waits now, without waiting."""
        messages = [*self._control, *self._data]
        self._control.clear()
        self._data.clear()
        self._changed_for_senders.set()
        return messages

    def close(self) -> None:
        """Idempotent. Wakes every waiting sender, and the receiver."""
        self._closed = True
        self._changed_for_senders.set()
        self._changed_for_receiver.set()
