"""A two-way line between a front and a replica, through a socket or within one process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from typing import Any, Protocol

import msgspec

from jaxsgl.actors.messages import CONTROL
from jaxsgl.replicas.frames import FrameError, FrameReader, encode_frame
from jaxsgl.replicas.tcp import watch_peer

_BATCH_BYTES = 256 << 10
"""About as much as is handed to the socket at once; what waits behind can still be overtaken."""
_HIGH_WATER_BYTES = 1 << 20
"""More than this unsent, and `room` waits."""
_MAX_UNSENT_BYTES = 256 << 20
"""More than this unsent, and the other side is taken for dead."""


class Receiver[In](Protocol):
    """Who is told what comes over a link. Called from the event loop; must not block or raise."""

    def on_message(self, message: In) -> None: ...

    def on_closed(self, cause: Exception | None) -> None:
        """Called once, last of all. `cause` is None if one side closed the link."""
        ...


class Link[Out](Protocol):
    """One end. Messages arrive in the order of sending, except that CONTROL messages overtake
    others that are still waiting to be sent."""

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when nothing will come any more. Never raises."""
        ...

    def send(self, message: Out) -> None:
        """Never blocks. Does nothing once the link is closing: the receiver is told of that.

        Raises FrameError for a message too large for the other side.
        """
        ...

    async def room(self) -> None:
        """Wait while the other side lags behind. Senders of bulk ask for it; control never does."""
        ...

    def close(self) -> None:
        """Send what waits, then end. Idempotent."""
        ...


class _Lanes:
    """What waits to be sent."""

    def __init__(self) -> None:
        self.control: deque[Any] = deque()
        self.data: deque[Any] = deque()

    def __bool__(self) -> bool:
        return bool(self.control or self.data)

    def put(self, message: Any, item: Any) -> None:
        (self.control if isinstance(message, CONTROL) else self.data).append(item)

    def pop(self) -> Any:
        return (self.control or self.data).popleft()


class SocketLink[In, Out](asyncio.Protocol):
    """A Link over a stream socket.

    What is sent during one turn of the event loop leaves in one write. The end of the stream, a
    broken frame and a peer that reads nothing all end the link.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[In],
        receiver: Receiver[In],
    ) -> None:
        self.receiver = receiver
        self.reader = FrameReader(decoder)
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._lanes = _Lanes()
        self._unsent_bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._flush_is_due = False
        self._paused = False
        self._closing = False
        self._cause: Exception | None = None

    @property
    def closed(self) -> asyncio.Future[None]:
        return self._closed

    def send(self, message: Out) -> None:
        if self._closing:
            return
        frame = encode_frame(message)
        self._lanes.put(message, frame)
        self._unsent_bytes += len(frame)
        if self._unsent_bytes > _MAX_UNSENT_BYTES:
            self.fail(FrameError("the other side reads nothing"))
            return
        if self._unsent_bytes > _HIGH_WATER_BYTES:
            self._has_room.clear()
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    async def room(self) -> None:
        await self._has_room.wait()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._transport is not None:
            while self._lanes:
                self._transport.write(self._lanes.pop())
            self._transport.close()

    def fail(self, cause: Exception | None) -> None:
        """End now; nothing more is sent or received."""
        self._closing = True
        self._cause = self._cause or cause
        if self._transport is not None:
            self._transport.abort()

    def dup_socket(self) -> socket.socket:
        """A second handle of the socket, for whoever must watch it without the event loop."""
        assert self._transport is not None
        return socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            watch_peer(sock)
        if self._closing:  # given up before it was there
            transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self.reader.feed(data):
                self.receiver.on_message(message)
                if self._closing:
                    return
        except FrameError as error:
            self.fail(error)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._has_room.set()
        self._closed.set_result(None)
        self.receiver.on_closed(self._cause or exc)

    def _flush(self) -> None:
        self._flush_is_due = False
        while self._lanes and not self._paused and not self._closing:
            batch = bytearray()
            while self._lanes and len(batch) < _BATCH_BYTES:
                batch += self._lanes.pop()
            self._unsent_bytes -= len(batch)
            assert self._transport is not None
            self._transport.write(batch)  # May call pause_writing.
        if self._unsent_bytes <= _HIGH_WATER_BYTES:
            self._has_room.set()


class MemoryLink[In, Out]:
    """A Link whose other end is in the same event loop. Nothing is encoded or copied."""

    def __init__(self, receiver: Receiver[In]) -> None:
        self._receiver = receiver
        self._peer: MemoryLink[Out, In] | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes = _Lanes()
        self._closing = False

    @property
    def closed(self) -> asyncio.Future[None]:
        return self._closed

    def send(self, message: Out) -> None:
        if self._closing:
            return
        self._lanes.put(message, message)
        asyncio.get_running_loop().call_soon(self._deliver_one)

    async def room(self) -> None:
        """Returns at once: both ends share one event loop, and neither can lag behind."""

    def close(self) -> None:
        peer = self._peer
        if self._closing or peer is None:
            return
        self._closing = peer._closing = True
        asyncio.get_running_loop().call_soon(self._end)

    def _deliver_one(self) -> None:
        peer = self._peer
        if peer is not None and not peer._closed.done():
            peer._receiver.on_message(self._lanes.pop())

    def _end(self) -> None:
        for link in (self, self._peer):
            if link is not None:
                link._closed.set_result(None)
                link._receiver.on_closed(None)


def memory_pair[A, B](
    first: Receiver[A], second: Receiver[B]
) -> tuple[MemoryLink[A, B], MemoryLink[B, A]]:
    """Two ends: what is sent into one, the receiver of the other gets in a later turn of the
    loop."""
    one, other = MemoryLink[A, B](first), MemoryLink[B, A](second)
    one._peer, other._peer = other, one
    return one, other
