"""Getting the address, before anything else is loaded."""

from __future__ import annotations

import errno
import socket

import pytest

from jaxsgl.config import ConfigError
from server.site import bind_socket
from tests.server.conftest import Served


def test_free_port() -> None:
    with bind_socket("127.0.0.1", 0) as first, bind_socket("localhost", 0) as second:
        assert first.getsockname()[1] != second.getsockname()[1]


def test_port_in_use_by_a_server_that_has_not_started_yet() -> None:
    with bind_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            bind_socket("127.0.0.1", port)
    bind_socket("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("203.0.113.1", 0, "203.0.113.1 is not an address of this machine"),
        ("bad host", 0, "cannot listen on --host 'bad host'"),
        ("a" * 300, 0, "cannot listen"),
        ("127.0.0.1", 70_000, "--port 70000 is not a port"),
        ("127.0.0.1", -1, "--port -1 is not a port"),
    ],
)
def test_address_that_cannot_be_had(host: str, port: int, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_socket(host, port)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_privileged_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ConfigError, match="port 80 needs privileges"):
        bind_socket("127.0.0.1", 80)


async def test_ipv6() -> None:
    with bind_socket("::1", 0) as sock:
        assert sock.family == socket.AF_INET6


async def test_closing_ends_what_still_runs(served: Served) -> None:
    """A handler that outlives the time limit is cancelled; the fixture then checks for leaks."""
    served.engine.hold_after = 0
    _, writer = await served.connect()
    body = b'{"prompt":"a"}'
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    await served.engine.held.wait()
    await served.runner.shutdown()
    writer.close()
