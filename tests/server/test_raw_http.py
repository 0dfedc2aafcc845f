"""What only raw sockets can send."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.server.conftest import Served

BODY = b'{"prompt":"ab","max_tokens":3}'


def post(body: bytes, *headers: str) -> bytes:
    head = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


async def exchange(served: Served, data: bytes) -> bytes:
    """Everything the server sends until it closes the connection, which `data` must make it do."""
    reader, writer = await served.connect()
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    length = f"Content-Length: {len(BODY)}"
    second = BODY.replace(b"ab", b"xy")
    answer = await exchange(served, post(BODY, length) + post(second, length, "Connection: close"))
    first, _, rest = answer.partition(b'"text":"aba"')
    assert first.count(b"HTTP/1.1 200") == 1
    assert rest.count(b"HTTP/1.1 200") == 1 and b'"text":"xyx"' in rest


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        post(BODY, "Content-Length: 30", "Transfer-Encoding: chunked"),
        post(BODY, "Content-Length: 30", "Content-Length: 5"),
        post(BODY, "Content-Length: -1"),
        post(BODY, "Content-Length: x"),
        post(b"zz\r\n", "Transfer-Encoding: chunked"),
        post(BODY, "X-Long: " + "x" * 10_000),
        post(BODY, *(f"X-{i}: 1" for i in range(200))),
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_not_http(served: Served, data: bytes) -> None:
    answer = await exchange(served, data)
    assert answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert b"Traceback" not in answer
    assert served.engine.requests == []
    assert (await served.get("/health"))[0] == 200


async def test_chunked_body(served: Served) -> None:
    chunked = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in BODY) + b"0\r\n\r\n"
    answer = await exchange(
        served, post(chunked, "Transfer-Encoding: chunked", "Connection: close")
    )
    assert answer.startswith(b"HTTP/1.1 200") and b'"text":"aba"' in answer


async def test_endless_chunked_body_is_refused(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(post(b"", "Transfer-Encoding: chunked"))
    for _ in range(17):
        writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    writer.close()


async def test_client_that_leaves_in_the_middle_of_its_body(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(post(BODY[:10], f"Content-Length: {len(BODY)}"))
    await writer.drain()
    writer.write_eof()
    assert b"200" not in await reader.read()
    writer.close()
    assert served.engine.requests == []


@pytest.mark.parametrize("garbage", [b"", b"zz\r\n", b"1\r\nxx\r\n", b"f" * 20 + b"\r\n"])
async def test_body_that_never_becomes_whole(
    served: Served, monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    monkeypatch.setattr("server.json_body.BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(served.runner, "_shutdown_timeout", 0.1)  # for what lingers
    reader, writer = await served.connect()
    writer.write(post(b"5\r\n     \r\n", "Transfer-Encoding: chunked"))
    await served.get("/health")  # by now the handler waits for the rest of the body
    writer.write(garbage)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408")
    writer.close()
    assert served.engine.requests == []


async def test_expect_100_continue(served: Served) -> None:
    reader, writer = await served.connect()
    length = f"Content-Length: {len(BODY)}"
    writer.write(post(b"", length, "Expect: 100-continue", "Connection: close"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    writer.write(BODY)
    assert b'"text":"aba"' in await reader.read()
    writer.close()


async def test_head(served: Served) -> None:
    answer = await exchange(
        served, b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n")


async def test_http_1_0_stream(served: Served) -> None:
    body = json.dumps({"prompt": "ab", "max_tokens": 3, "stream": True}).encode()
    data = post(body, f"Content-Length: {len(body)}").replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = await exchange(served, data)
    assert b"chunked" not in answer and answer.endswith(b"data: [DONE]\n\n")


async def test_random_bytes_never_hurt_the_next_client(served: Served) -> None:
    good = post(BODY, f"Content-Length: {len(BODY)}", "Connection: close")
    for position in range(0, len(good), 3):
        reader, writer = await served.connect()
        writer.write(good[:position] + b"\xff" + good[position + 1 :])
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert (await exchange(served, good)).startswith(b"HTTP/1.1 200")
