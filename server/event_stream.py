"""One HTTP response that carries events, and what happens when its client does not read them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web
from aiohttp.http import StreamWriter

from server.connection import Connection

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy that gathers events defeats them
}


class ClientGone(ConnectionError):
    """Nobody is left to answer."""


class SlowClient(ClientGone):
    """The client did not take what was sent in time; its connection is cut."""


async def open_event_stream(request: web.Request, write_timeout_s: float) -> EventStream:
    """Send the head of the response: from here on its status is 200. Raises ClientGone."""
    response = web.StreamResponse(headers=_HEADERS)
    try:
        writer = await response.prepare(request)
    except ConnectionError as error:
        raise ClientGone(str(error)) from None
    assert isinstance(writer, StreamWriter)
    _mark(request, True)
    return EventStream(request, response, writer, write_timeout_s)


class EventStream:
    """Writes events at once, and holds no more for a client than the transport's high-water mark.

    Above that mark `send` and `end` wait until the client has caught up, at most `write_timeout_s`;
    then they cut the connection and raise SlowClient. Both raise ClientGone for a client that left.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        writer: StreamWriter,
        write_timeout_s: float,
    ) -> None:
        self._request = request
        self._response = response
        self._writer = writer
        self._write_timeout_s = write_timeout_s

    async def send(self, events: bytes) -> None:
        try:
            await self._writer.write(events, drain=False)
        except ConnectionError as error:
            raise ClientGone(str(error)) from None
        # A time limit on every write would cost more than the write: set only above the mark.
        if self._request.protocol.writing_paused:
            await write_in_time(self._request, self._writer.drain(), self._write_timeout_s)

    async def end(self, events: bytes, *, close: bool = False) -> web.StreamResponse:
        """Send the last events; with `close`, end the connection too. Returns what handlers do."""
        _mark(self._request, False)
        if close:
            self._response.force_close()
        writing = self._response.write_eof(events)
        await write_in_time(self._request, writing, self._write_timeout_s)
        return self._response


def _mark(request: web.Request, streams_events: bool) -> None:
    if isinstance(request.protocol, Connection):
        request.protocol.streams_events = streams_events


async def write_in_time(
    request: web.Request, writing: Coroutine[Any, Any, None], timeout_s: float
) -> None:
    """Await `writing`; cut off a client that makes it last longer. Raises as EventStream does."""
    try:
        async with asyncio.timeout(timeout_s):
            await writing
    except ConnectionError as error:
        raise ClientGone(str(error)) from None
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise SlowClient(f"The client took nothing for {timeout_s:g} s") from None
