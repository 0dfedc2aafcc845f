"""Connections that are slow, half closed, too many, or encrypted."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from pathlib import Path

import pytest

from jaxsgl.config import ConfigError, ServerConfig
from server.connection import Connection
from server.site import tls_context
from tests.actors.waiting import until
from tests.server.conftest import Served, serve
from tests.server.test_raw_http import BODY, post

TLS = Path(__file__).parent / "tls"
CERT, KEY, LOCKED = (str(TLS / name) for name in ("cert.pem", "key.pem", "locked.pem"))
GOOD = post(BODY, f"Content-Length: {len(BODY)}")
STREAM = b'{"prompt":"ab","max_tokens":3,"stream":true}'


# Slow heads.


@pytest.mark.parametrize("begun", [b"P", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_never_becomes_whole(
    served: Served, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr("server.connection.HEAD_TIMEOUT_S", 0.05)
    reader, writer = await served.connect()
    writer.write(begun)
    async with asyncio.timeout(30):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"type":"invalid_request_error"' in answer
    writer.close()
    assert (await served.get("/health"))[0] == 200


async def test_each_head_has_a_time_limit_of_its_own(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(GOOD)
    await reader.readuntil(b'"x-sglang-gpu-count":1}')
    manager = served.runner.server
    assert manager is not None
    (connection,) = manager.connections
    assert isinstance(connection, Connection)
    limits: list[asyncio.TimerHandle] = []
    for _ in range(3):
        assert connection._head_timer is None
        writer.write(GOOD[:10])
        await until(lambda: connection._head_timer)
        assert connection._head_timer is not None
        limits.append(connection._head_timer)
        writer.write(GOOD[10:])
        await reader.readuntil(b'"x-sglang-gpu-count":1}')
    assert all(limit.cancelled() for limit in limits)
    first, _, last = limits
    assert first.when() < last.when()
    writer.close()


# Half-closed connections.


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_who_shuts_its_sending_side_still_gets_the_answer(
    served: Served, body: bytes, held: bool
) -> None:
    served.engine.hold_after = 0 if held else None
    reader, writer = await served.connect()
    writer.write(post(body, f"Content-Length: {len(body)}"))
    writer.write_eof()
    if held:
        await served.engine.held.wait()
        await asyncio.sleep(0.2)  # several probes
        assert served.engine.open
        served.engine.release.set()
    async with asyncio.timeout(30):
        answer = await reader.read()  # to the end: the server closes once it has answered
    if held:
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    assert b"HTTP/1.1 200" in answer and answer.endswith((b"[DONE]\n\n\r\n0\r\n\r\n", b":1}"))
    writer.close()


async def test_pipelined_requests_before_the_end(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(GOOD * 3)
    writer.write_eof()
    async with asyncio.timeout(30):
        assert (await reader.read()).count(b"HTTP/1.1 200") == 3
    writer.close()


@pytest.mark.parametrize("hold_after", [0, 1])
@pytest.mark.parametrize("body", [BODY, STREAM])
@pytest.mark.parametrize("reset", [False, True])
async def test_who_closes_is_aborted_though_it_looks_alike(
    served: Served, body: bytes, hold_after: int, reset: bool
) -> None:
    served.engine.hold_after = hold_after
    _, writer = await served.connect()
    writer.write(post(body, f"Content-Length: {len(body)}"))
    await served.engine.held.wait()
    if reset:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    if body is STREAM and hold_after and not reset:
        served.engine.release.set()  # the next event finds nobody
    async with asyncio.timeout(30):
        await served.engine.idle()


async def test_http_1_0_has_no_interim_responses(served: Served) -> None:
    served.engine.hold_after = 0
    reader, writer = await served.connect()
    writer.write(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"))
    await served.engine.held.wait()
    writer.write_eof()
    async with asyncio.timeout(30):
        assert await reader.read() == b""
        await served.engine.idle()
    writer.close()


async def test_an_end_without_a_request(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write_eof()
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()


# Too many.


async def test_connections_beyond_the_limit_are_told_so() -> None:
    async with serve(ServerConfig(max_connections=2)) as served:
        kept = [await served.connect() for _ in range(2)]
        for _, writer in kept:
            writer.write(GOOD)
        for reader, _ in kept:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        reader, writer = await served.connect()
        writer.write(GOOD)
        refusal = await reader.read()
        assert refusal.startswith(b"HTTP/1.1 503") and b"Too many connections" in refusal
        assert b"Retry-After: 1" in refusal
        for _, other in kept:
            other.close()
        writer.close()
        async with asyncio.timeout(30):
            while (await served.get("/health"))[0] != 200:  # noqa: ASYNC110 - ends on their way
                await asyncio.sleep(0.01)
        assert len(served.engine.requests) == 2


# Encrypted.


async def test_https() -> None:
    config = ServerConfig(ssl_certfile=CERT, ssl_keyfile=KEY)
    async with serve(config, tls_context(config)) as served:
        trusting = ssl.create_default_context(cafile=CERT)
        url = served.url.replace("http:", "https:")
        body = {"prompt": "abc", "max_tokens": 3, "stream": True}
        async with served.session.post(
            url + "/v1/completions", json=body, ssl=trusting
        ) as response:
            assert response.status == 200
            assert (await response.text()).endswith("data: [DONE]\n\n")
        reader, writer = await served.connect()
        writer.write(GOOD)  # in the clear
        assert b"200" not in await reader.read()
        writer.close()
        assert len(served.engine.requests) == 1


async def test_a_client_that_leaves_over_tls() -> None:
    config = ServerConfig(ssl_certfile=CERT, ssl_keyfile=KEY)
    async with serve(config, tls_context(config)) as served:
        served.engine.hold_after = 1
        trusting = ssl.create_default_context(cafile=CERT)
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=trusting)
        writer.write(GOOD)
        await served.engine.held.wait()
        writer.close()
        async with asyncio.timeout(30):
            await served.engine.idle()
            await writer.wait_closed()


def test_a_locked_key() -> None:
    locked = ServerConfig(ssl_certfile=CERT, ssl_keyfile=LOCKED, ssl_keyfile_password="secret")
    assert tls_context(locked) is not None
    assert tls_context(ServerConfig()) is None


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig(ssl_keyfile=KEY),
        ServerConfig(ssl_certfile="/no/such/file"),
        ServerConfig(ssl_certfile=CERT),  # no key in it
        ServerConfig(ssl_certfile=KEY, ssl_keyfile=KEY),
        ServerConfig(ssl_certfile=CERT, ssl_keyfile=LOCKED),
        ServerConfig(ssl_certfile=CERT, ssl_keyfile=LOCKED, ssl_keyfile_password="wrong"),
    ],
)
def test_certificates_that_cannot_be_used(config: ServerConfig) -> None:
    with pytest.raises(ConfigError, match="--ssl-certfile") as caught:
        tls_context(config)
    assert "\n" not in str(caught.value)
