"""One client's connection: aiohttp's, with a time limit on request heads, a count of how many are
open, and an eye for clients that have closed only their sending side."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import HttpVersion11, web

from jaxsgl.interface import EngineError, Unavailable
from server.errors import RequestRefused, error_body, error_response

HEAD_TIMEOUT_S = 10.0
"""A client gets this long to send a request head once it has begun."""
PROBE_PERIOD_S = 0.05

_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
"""RFC 9110, 15.2: clients skip interim responses, also those that they did not ask for."""
_COMMENT = b"3\r\n:\n\n\r\n"
"""A chunk with a comment; readers of event streams skip those."""


class Gate:
    """Counts the connections of a server. Those beyond `max_open` are told so and closed."""

    def __init__(self, max_open: int, clients: set[int]) -> None:
        """`clients` gets the file numbers of the connections."""
        self.max_open = max_open
        self.clients = clients
        self.num_open = 0

    def enter(self, file_number: int) -> bool:
        """Count a connection in. Returns whether it is beyond the limit."""
        self.num_open += 1
        self.clients.add(file_number)
        return self.num_open > self.max_open

    def leave(self, file_number: int) -> None:
        self.num_open -= 1
        self.clients.discard(file_number)


class Connection(web.RequestHandler):
    """A client that shuts its sending side down still gets its answers. From here that looks like
    one that went away, so it is sent something that means nothing, which a socket that is gone
    resets. HTTP/1.0 has nothing of that kind: there, and under TLS, it counts as gone."""

    __slots__ = (
        "_file_number",
        "_gate",
        "_head_timer",
        "_probe_timer",
        "head_s",
        "is_surplus",
        "streams_events",
        "was_made",
    )

    def __init__(
        self, manager: web.Server, gate: Gate, options: Mapping[str, Any], *, is_surplus: bool
    ) -> None:
        """Of a client that has entered the gate, which it leaves at its end if it `was_made`."""
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self._gate = gate
        self._head_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._file_number = -1
        self.was_made = False
        """Whether there was a connection; there is none if a TLS handshake failed."""
        self.is_surplus = is_surplus
        self.head_s = 0.0
        """When the latest request head was whole, on the clock of `time.perf_counter`."""
        self.streams_events = False
        """Whether a chunk with events may be written at this moment."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.was_made = True
        self._file_number = transport.get_extra_info("socket").fileno()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._file_number >= 0:
            self._gate.leave(self._file_number)
            self._file_number = -1
        for timer in (self._head_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._probe_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        num_before = self._request_count
        super().data_received(data)
        if self._request_count != num_before:
            self.head_s = time.perf_counter()
        if not self._is_idle:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None and data.strip():
            self._head_timer = self._loop.call_later(HEAD_TIMEOUT_S, self._end_slow_head)

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - asyncio's
        """Whether the connection stays open in the other direction."""
        if self.transport is None or not self._owes_an_answer() or self.ssl_context is not None:
            return False
        request = self._current_request
        if request is not None and request.version < HttpVersion11:
            return False
        if self.streams_events:
            self.transport.write(_COMMENT)
        elif request is not None and not request.writer.output_size:
            self.transport.write(_INTERIM)
        self._watch()
        return True

    @property
    def _is_idle(self) -> bool:
        """Whether it waits for the head of a request to become whole."""
        return self._waiter is not None and not self._waiter.done()

    def _owes_an_answer(self) -> bool:
        """Whether whole requests are here and nothing else is."""
        bodies = [payload for _, payload in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        return bool(bodies) and all(body.is_eof() for body in bodies)

    def _watch(self) -> None:
        """After the end of what the client sends: close once it has its answers or is gone."""
        if self.transport is None:
            return
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        elif self._is_idle:
            self.force_close()  # once what was written is sent
        else:
            self._probe_timer = self._loop.call_later(PROBE_PERIOD_S, self._watch)

    def _end_slow_head(self) -> None:
        self._head_timer = None
        if self.transport is not None and self._is_idle:
            late = RequestRefused(408, f"The request head did not arrive in {HEAD_TIMEOUT_S:g} s")
            self.transport.write(_last_words(late, "Request Timeout"))
            self.force_close()


def arrived_s(request: web.Request) -> float:
    """When its head was whole, on the clock of `time.perf_counter`."""
    protocol = request.protocol
    return protocol.head_s if isinstance(protocol, Connection) else time.perf_counter()


def is_surplus(request: web.Request) -> bool:
    """Whether it came on a connection beyond those that are allowed."""
    return isinstance(request.protocol, Connection) and request.protocol.is_surplus


def surplus_answer() -> web.Response:
    """The last on its connection."""
    response = error_response(Unavailable("Too many connections are open"))
    response.force_close()
    return response


def _last_words(error: EngineError, reason: str) -> bytes:
    body = error_body(error)
    head = (
        f"HTTP/1.1 {error.status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
