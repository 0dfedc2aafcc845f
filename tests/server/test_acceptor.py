"""Clients are taken in at once, and become connections when they speak."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from jaxsgl.config import ServerConfig
from server.acceptor import Acceptor
from server.connection import Gate
from server.site import tls_context
from tests.actors.waiting import until
from tests.server.conftest import Served, serve
from tests.server.test_connection import CERT, GOOD, KEY
from tests.server.test_surroundings import HEALTH


def gate_of(served: Served) -> Gate:
    (site,) = served.runner.sites
    return site._gate  # pyright: ignore[reportAttributeAccessIssue]


def acceptor_of(served: Served) -> Acceptor:
    (site,) = served.runner.sites
    acceptor = site._server
    assert isinstance(acceptor, Acceptor)
    return acceptor


def num_connections(served: Served) -> int:
    assert served.runner.server is not None
    return len(served.runner.server.connections)


async def test_who_says_nothing_is_accepted_and_no_connection(served: Served) -> None:
    gate = gate_of(served)
    clients = [await served.connect() for _ in range(20)]
    await until(lambda: gate.num_open == len(gate.clients) == 20)
    assert num_connections(served) == 0
    for reader, writer in clients[:5]:
        writer.write(GOOD)
        assert (await reader.readuntil(b":1}")).startswith(b"HTTP/1.1 200")
    assert num_connections(served) == 5 and gate.num_open == 20
    for _, writer in clients[:10]:  # some have spoken, some have not
        writer.close()
    await until(lambda: gate.num_open == len(gate.clients) == 10)
    await served.runner.cleanup()  # closes the rest
    assert gate.num_open == 0
    for reader, writer in clients[10:]:
        assert await reader.read() == b""
        writer.close()


async def test_who_says_nothing_for_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.site.IDLE_TIMEOUT_S", 0.05)
    async with serve(ServerConfig()) as served:
        clients = [await served.connect() for _ in range(3)]
        async with asyncio.timeout(30):
            assert [await reader.read() for reader, _ in clients] == [b""] * 3
        assert gate_of(served).num_open == 0 and not gate_of(served).clients
        for _, writer in clients:
            writer.close()


async def test_who_is_beyond_the_limit_is_told_by_the_order_of_arrival() -> None:
    async with serve(ServerConfig(max_connections=2)) as served:
        clients = [await served.connect() for _ in range(3)]
        await until(lambda: gate_of(served).num_open == 3)
        answers: list[bytes] = []
        for reader, writer in reversed(clients):
            writer.write(GOOD)
            answers.append((await reader.readuntil(b"\r\n"))[9:12])
            writer.close()
        assert answers == [b"503", b"200", b"200"]


async def test_who_fails_to_agree_on_encryption_is_counted_out() -> None:
    config = ServerConfig(ssl_certfile=CERT, ssl_keyfile=KEY)
    async with serve(config, tls_context(config)) as served:
        reader, writer = await served.connect()
        writer.write(GOOD)  # in the clear
        assert b"200" not in await reader.read()
        writer.close()
        await until(lambda: gate_of(served).num_open == 0)
        assert not gate_of(served).clients


class Unable(socket.socket):
    """Cannot accept as often as it is told to fail."""

    num_failures = 1

    def accept(self) -> tuple[socket.socket, object]:
        if self.num_failures:
            self.num_failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_it_tries_again_when_there_were_no_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.acceptor.RETRY_S", 0.01)
    listener = Unable()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    gate = Gate(10, set())
    acceptor = Acceptor(listener, gate, lambda _: pytest.fail("it has said nothing"), None, 60)
    acceptor.open()
    with socket.create_connection(listener.getsockname()):
        await until(lambda: gate.num_open == 1)
        assert "no client can be accepted" in caplog.text
        acceptor.close()
    assert gate.num_open == 0 and not gate.clients


class Bringing:
    """In place of a listening socket: brings these clients."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self._clients = clients

    def accept(self) -> tuple[socket.socket, object]:
        if not self._clients:
            raise BlockingIOError
        return self._clients.pop(0), None


async def test_a_health_check_that_is_here_already_becomes_a_connection_at_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    for (_, far), request in zip(pairs, (GOOD, HEALTH), strict=True):
        far.setblocking(False)
        far.send(request)
    acceptor = acceptor_of(served)
    with monkeypatch.context() as patched:
        patched.setattr(acceptor, "_sock", Bringing([near for near, _ in pairs]))
        acceptor._accept()
    assert gate_of(served).num_open == 2
    assert len(acceptor._silent) == len(acceptor._starting) == 1
    for _, far in pairs:
        answer = await asyncio.get_running_loop().sock_recv(far, 1000)
        assert answer.startswith(b"HTTP/1.1 200")
        far.close()
    await until(lambda: gate_of(served).num_open == 0)
