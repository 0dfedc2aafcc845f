"""A service that is spoken to through a mailbox."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from jaxsgl.actors.mailbox import Mailbox, MailboxClosed
from jaxsgl.actors.service import Service, ServiceDead


@dataclass(slots=True)
class Envelope[M]:
    message: M
    reply: asyncio.Future[Any] | None = None
    """Where the answer goes, for a message that was asked. Done already if the asker has gone."""


class Actor[M](Service):
    """Handles messages one at a time, in the order of its mailbox.

    What `handle` raises goes to the asker and the actor lives on; raised for a message that was
    only told, it ends the actor. A dead actor fails every ask with ServiceDead. When asked to stop
    it takes no new message and handles those that wait.
    """

    control: tuple[type, ...] = ()
    """Messages of these types overtake the others."""

    def __init__(self, name: str, *, capacity: int = 1024) -> None:
        super().__init__(name)
        self.mailbox: Mailbox[Envelope[M]] = Mailbox(capacity)
        self._replies: set[asyncio.Future[Any]] = set()

    async def handle(self, message: M) -> object:
        """Act on a message; what it returns is the answer."""
        raise NotImplementedError

    async def ask(self, message: M, timeout_s: float | None = None) -> Any:
        """The answer. Raises what `handle` raised, TimeoutError, or ServiceDead.

        Cancelled or timed out before the message was looked at, it is dropped.
        """
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._put(Envelope(message, reply))
                self._replies.add(reply)
                return await reply
        finally:
            self._replies.discard(reply)
            reply.cancel()

    async def tell(self, message: M) -> None:
        """Put the message, waiting for room. Raises ServiceDead."""
        await self._put(Envelope(message))

    def try_tell(self, message: M) -> None:
        """Put the message now. Raises MailboxFull or ServiceDead."""
        try:
            self.mailbox.try_put(Envelope(message), control=isinstance(message, self.control))
        except MailboxClosed:
            raise ServiceDead(f"{self.name} has ended") from None

    async def run(self) -> None:
        """Handle messages until the mailbox is closed and empty."""
        await self._work(self.mailbox)

    async def _work(self, mailbox: Mailbox[Envelope[M]]) -> None:
        while True:
            try:
                envelope = await mailbox.get()
            except MailboxClosed:
                return
            await self._answer(envelope)

    def on_stop_requested(self) -> None:
        self.mailbox.close()

    def on_dead(self, cause: Exception | None) -> None:
        self.mailbox.close()
        self.mailbox.drain()
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(ServiceDead(f"{self.name} has ended"))

    async def _put(self, envelope: Envelope[M]) -> None:
        try:
            await self.mailbox.put(envelope, control=isinstance(envelope.message, self.control))
        except MailboxClosed:
            raise ServiceDead(f"{self.name} has ended") from None

    async def _answer(self, envelope: Envelope[M]) -> None:
        reply = envelope.reply
        if reply is None:
            await self.handle(envelope.message)
            return
        if reply.done():
            return
        try:
            answer = await self.handle(envelope.message)
        except Exception as error:
            if not reply.done():
                reply.set_exception(error)
        else:
            if not reply.done():
                reply.set_result(answer)
