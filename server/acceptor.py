"""Takes clients in as fast as they come, and makes a connection of each once it speaks.

A client that has not been accepted waits in the kernel behind all that came before it, and when
that queue is full it is left to try again a second later. To make a connection costs many times as
much as to accept: here everybody is accepted at once, and who has something to say waits for a turn
(`turns.py`), except health checks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from server.connection import Connection, Gate
from server.turns import is_health_check

MAX_ACCEPTED_AT_ONCE = 512
RETRY_S = 1.0
"""After the process ran out of files."""

_OUT_OF_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A client that was accepted and has said nothing yet."""

    sock: socket.socket
    is_surplus: bool
    due_s: float
    """When it is closed if it still has said nothing."""


class Acceptor(asyncio.AbstractServer):
    """Owns a listening socket from `open` to `close`. Construct it in a running loop.

    `connect` makes the protocol of a client, of which it is told whether it is beyond the limit.
    """

    def __init__(
        self,
        sock: socket.socket,
        gate: Gate,
        connect: Callable[[bool], Connection],
        tls: ssl.SSLContext | None,
        silent_timeout_s: float,
    ) -> None:
        self._sock = sock
        self._gate = gate
        self._connect = connect
        self._tls = tls
        self._silent_timeout_s = silent_timeout_s
        self._loop = asyncio.get_running_loop()
        self._silent: dict[int, _Arrival] = {}
        """By file number, the oldest first."""
        self._starting: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None

    def open(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept nobody any more; who has said nothing yet is cut off. Connections go on."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for timer in (self._retry, self._sweep):
            if timer is not None:
                timer.cancel()
        for number in list(self._silent):
            self._drop(number)
        for task in self._starting:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_ROOM:
                    raise  # the event loop logs it
                log.warning("no client can be accepted for %g s: %s", RETRY_S, error)
                self._loop.remove_reader(self._sock.fileno())
                self._retry = self._loop.call_later(RETRY_S, self.open)
                return
            sock.setblocking(False)
            self._take_in(sock)

    def _take_in(self, sock: socket.socket) -> None:
        number = sock.fileno()
        is_surplus = self._gate.enter(number)
        due_s = self._loop.time() + self._silent_timeout_s
        self._silent[number] = _Arrival(sock, is_surplus, due_s)
        if is_health_check(number):  # it is here already, and saves a turn
            self._on_first_bytes(number)
            return
        self._loop.add_reader(number, self._on_first_bytes, number)
        if self._sweep is None:
            self._sweep = self._loop.call_at(due_s, self._close_silent)

    def _on_first_bytes(self, number: int) -> None:
        self._loop.remove_reader(number)
        arrival = self._silent.pop(number)
        # Begun at once, so that whatever happens next the socket has an owner.
        task = asyncio.Task(self._start(arrival), loop=self._loop, eager_start=True)
        if not task.done():
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self, arrival: _Arrival) -> None:
        number = arrival.sock.fileno()
        connection = self._connect(arrival.is_surplus)
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, arrival.sock, ssl=self._tls
            )
        except OSError as error:  # a TLS handshake that failed
            log.debug("a client was not let in: %s", error)
        finally:
            if not connection.was_made:
                self._gate.leave(number)

    def _close_silent(self) -> None:
        self._sweep = None
        now_s = self._loop.time()
        while self._silent:
            number, arrival = next(iter(self._silent.items()))
            if arrival.due_s > now_s:
                self._sweep = self._loop.call_at(arrival.due_s, self._close_silent)
                return
            self._drop(number)

    def _drop(self, number: int) -> None:
        self._loop.remove_reader(number)
        self._silent.pop(number).sock.close()
        self._gate.leave(number)
