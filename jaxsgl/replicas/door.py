"""The socket through which one replica process reaches the front that started it."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from jaxsgl.actors.messages import ToFront
from jaxsgl.replicas.frames import (
    MAX_FRAME_BYTES,
    FromFront,
    FromReplica,
    Hello,
    from_front_decoder,
    from_replica_decoder,
)
from jaxsgl.replicas.link import Receiver, SocketLink
from jaxsgl.replicas.tcp import join_address, split_address

_HELLO_MAX_BYTES = 1024
"""Nobody may make us keep more than this before he has shown the token."""
_HELLO_TIMEOUT_S = 10.0

type FrontLink = SocketLink[FromReplica, FromFront]
type ReplicaLink = SocketLink[FromFront, FromReplica]


class Door:
    """Lets in one replica: the first that shows the token.

    Without a host the socket has mode 0600 in a new folder of mode 0700, and both are gone as soon
    as the door is closed; with one, it is some port of that address of this machine. `opened` is
    done when the replica is in; from then on its messages go to the receiver.
    """

    def __init__(self, receiver: Receiver[ToFront], host: str | None = None) -> None:
        self.token = secrets.token_hex(32)
        self.opened: asyncio.Future[FrontLink] = asyncio.get_running_loop().create_future()
        self._receiver = receiver
        self._host = host
        self._folder = None if host else Path(tempfile.mkdtemp(prefix="jaxsgl-"))
        self._server: asyncio.Server | None = None
        self.strangers: set[_Visitor] = set()

    @property
    def address(self) -> str:
        """The path of the socket, or HOST:PORT once it listens."""
        if self._folder is not None:
            return str(self._folder / "front")
        assert self._server is not None
        return join_address(*self._server.sockets[0].getsockname()[:2])

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        # Two steps, so that a cancelled one leaves no server that nobody can close.
        if self._host is not None:
            self._server = await loop.create_server(self._visit, self._host, 0, start_serving=False)
        else:
            path = self.address
            self._server = await loop.create_unix_server(self._visit, path, start_serving=False)
            os.chmod(path, 0o600)
        await self._server.start_serving()

    def close(self) -> None:
        """Idempotent. A replica that is in stays in."""
        if self._server is not None:
            self._server.close()
        for stranger in list(self.strangers):
            stranger.link.fail(None)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def let_in(self, visitor: _Visitor, hello: Hello) -> bool:
        """Whether this visitor is the replica."""
        if self.opened.done() or not hmac.compare_digest(hello.token.encode(), self.token.encode()):
            return False
        self.strangers.discard(visitor)
        self.opened.set_result(visitor.link)
        return True

    def _visit(self) -> FrontLink:
        visitor = _Visitor(self, self._receiver)
        self.strangers.add(visitor)
        return visitor.link


class _Visitor:
    """A connection: a stranger until it has shown the token, then the replica."""

    def __init__(self, door: Door, receiver: Receiver[ToFront]) -> None:
        self.link: FrontLink = SocketLink(from_replica_decoder, self)
        self.link.reader.max_frame_bytes = _HELLO_MAX_BYTES
        self._door = door
        self._receiver = receiver
        self._is_in = False
        self._timeout = asyncio.get_running_loop().call_later(
            _HELLO_TIMEOUT_S, self.link.fail, None
        )

    def on_message(self, message: FromReplica) -> None:
        if self._is_in and not isinstance(message, Hello):
            self._receiver.on_message(message)
        elif not self._is_in and isinstance(message, Hello) and self._door.let_in(self, message):
            self._is_in = True
            self._timeout.cancel()
            self.link.reader.max_frame_bytes = MAX_FRAME_BYTES
        else:
            self.link.fail(None)

    def on_closed(self, cause: Exception | None) -> None:
        self._timeout.cancel()
        self._door.strangers.discard(self)
        if self._is_in:
            self._receiver.on_closed(cause)


async def enter(address: str, token: str, receiver: Receiver[FromFront]) -> ReplicaLink:
    """The replica's side: connect and say Hello."""
    loop = asyncio.get_running_loop()

    def make_link() -> ReplicaLink:
        return SocketLink(from_front_decoder, receiver)

    if address.startswith("/"):
        _, link = await loop.create_unix_connection(make_link, address)
    else:
        _, link = await loop.create_connection(make_link, *split_address(address))
    link.send(Hello(token))
    return link
