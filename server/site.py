"""The listening socket and what serves it."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from jaxsgl.config import ConfigError, ServerConfig
from server.acceptor import Acceptor
from server.connection import Connection, Gate
from server.context import CONTEXT
from server.event_stream import ClientGone
from server.turns import Turns

BACKLOG = 4096
SEND_BUFFER_BYTES = 64 * 1024
"""Per connection in the kernel: who does not read is noticed after this much, not megabytes."""
IDLE_TIMEOUT_S = 75.0
"""A connection without a complete request head for this long is closed."""
CLOSE_TIMEOUT_S = 3.0
"""Handlers get this long when the site closes; by then the engine has ended their requests."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port` (0: a free one). Clients wait until `start_site`.

    Raises ConfigError, one line, when the address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is not a port; ports are 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on --host {host!r} --port {port}: {error}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it, and only if it is set before listening.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.bind(address)
        sock.listen(BACKLOG)  # until it listens, another server can bind the same address
    except OSError as error:
        sock.close()
        raise ConfigError(_why_not(host, port, error)) from None
    sock.setblocking(False)
    return sock


def _why_not(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use; choose another with --port"
        case errno.EACCES:
            return f"port {port} needs privileges; choose one above 1023 with --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; choose another with --host"
        case _:
            return f"cannot listen on --host {host!r} --port {port}: {error}"


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """None for a server without encryption. Raises ConfigError, one line."""
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # The password is given as a function: without one, OpenSSL would ask on the terminal.
        context.load_cert_chain(
            config.ssl_certfile, config.ssl_keyfile, lambda: config.ssl_keyfile_password or ""
        )
    except (OSError, ValueError) as error:
        files = " ".join(filter(None, (config.ssl_certfile, config.ssl_keyfile)))
        raise ConfigError(f"--ssl-certfile {files}: {error}") from None
    return context


async def start_site(
    app: web.Application,
    sock: socket.socket,
    tls: ssl.SSLContext | None = None,
    turns: Turns | None = None,
) -> web.AppRunner:
    """Serve `app` on a listening socket. `cleanup()` of the result stops and closes it. `turns` is
    what the event loop listens by, if it is one of those."""
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that goes away ends its request
        shutdown_timeout=CLOSE_TIMEOUT_S,
    )
    await runner.setup()
    gate = Gate(app[CONTEXT].config.max_connections, set() if turns is None else turns.clients)
    await _Site(runner, sock, gate, tls).start()
    return runner


class _Site(web.BaseSite):
    """A listening socket whose connections are ours."""

    def __init__(
        self,
        runner: web.AppRunner,
        sock: socket.socket,
        gate: Gate,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._sock = sock
        self._gate = gate
        self._options = {
            "auto_decompress": False,
            "access_log": None,
            "keepalive_timeout": IDLE_TIMEOUT_S,
            "logger": _ProtocolLogger(logging.getLogger(__name__)),
        }

    @property
    def name(self) -> str:
        scheme = "http" if self._ssl_context is None else "https"
        host, port = self._sock.getsockname()[:2]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        await super().start()
        self._server = acceptor = Acceptor(
            self._sock, self._gate, self._connect, self._ssl_context, IDLE_TIMEOUT_S
        )
        acceptor.open()

    def _connect(self, is_surplus: bool) -> Connection:
        manager = self._runner.server
        assert manager is not None
        return Connection(manager, self._gate, self._options, is_surplus=is_surplus)


class _ProtocolLogger(logging.LoggerAdapter[logging.Logger]):
    """Bytes that are not HTTP and clients that left are no defects: one debug line, no stack."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if isinstance(kwargs.get("exc_info"), (HttpProcessingError, ClientGone)):
            kwargs["exc_info"] = None
            level = logging.DEBUG
        super().log(level, msg, *args, **kwargs)
