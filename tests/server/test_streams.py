"""Streams: equal to whole answers, broken by errors, and ended when nobody reads them."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable

import pytest

from jaxsgl.config import ServerConfig
from jaxsgl.interface import Delta, EngineError, Finish, Usage
from tests.server.conftest import Served, serve
from tests.server.test_openai_routes import CHAT, TEXT, chat

ALPHABET = 'ab c\t"\\/é€😀\u0085\u2028\u2029\x00\x1e<text>'


async def test_streamed_text_is_the_whole_text(served: Served) -> None:
    draw = random.Random(0)
    for _ in range(200):
        prompt = "".join(draw.choices(ALPHABET, k=draw.randint(1, 12)))
        stop = [prompt[-3:], "zz"] if draw.random() < 0.5 else None
        body = {"max_tokens": draw.randint(1, 40), "stop": stop, "seed": draw.randint(0, 20)}
        _, whole = await served.post(CHAT, chat(prompt, **body))
        events = await served.stream(CHAT, chat(prompt, **body))
        assert all(len(event.splitlines()) == 1 for event in events)
        choices = [json.loads(event)["choices"][0] for event in events[:-1]]
        assert events[-1] == "[DONE]"
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]
        assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]

        _, whole = await served.post(TEXT, {"prompt": prompt, **body})
        events = await served.stream(TEXT, {"prompt": prompt, **body})
        choices = [json.loads(event)["choices"][0] for event in events[:-1]]
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (EngineError("numerical_error"), "numerical_error"),
        (KeyError("secret"), "Internal"),
        (ConnectionResetError("secret"), "Internal"),
    ],
)
async def test_broken_stream(served: Served, n: int, breakage: Exception, message: str) -> None:
    served.engine.break_after = (2, breakage)
    body = chat("abc", stream=True, n=n)
    reader, writer = await served.connect()
    writer.write(_request(CHAT, body))
    answer = await reader.read()  # to the end of the connection
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n0\r\n\r\n")
    assert answer.count(b"data: ") == 3 * n + 1  # of each choice a role and two tokens; the error
    assert b"[DONE]" not in answer
    last = answer.rpartition(b"data: ")[2]
    error = json.loads(last.partition(b"\n\n")[0])["error"]
    assert error["message"].startswith(message) and "secret" not in str(error)
    assert error["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", [False, True])
async def test_answer_that_finishes_with_an_error(
    served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool, first: bool
) -> None:
    failed = Delta("", [], Usage(1, 0, 0), Finish("error", message="numerical_error"))
    deltas = [failed] if first else [Delta("a", [97], Usage(1, 1, 0)), failed]
    monkeypatch.setattr("tests.server.fake_engine.answer", lambda _: deltas)
    async with served.session.post(served.url + CHAT, json=chat("a", stream=stream)) as response:
        assert response.status == (200 if stream and not first else 500)
        last = (await response.text()).strip().split("\n\n")[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["message"] == "numerical_error"


async def test_aborted_answer_is_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    aborted = Delta("a", [97], Usage(1, 1, 0), Finish("abort", message="by the operator"))
    monkeypatch.setattr("tests.server.fake_engine.answer", lambda _: [aborted])
    status, body = await served.post(CHAT, chat("a"))
    assert (status, body["choices"][0]["finish_reason"]) == (200, "abort")
    assert (await served.stream(CHAT, chat("a")))[-1] == "[DONE]"


@pytest.mark.parametrize("hold_after", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_client_that_goes_away(served: Served, hold_after: int, stream: bool, n: int) -> None:
    served.engine.hold_after = hold_after
    _, writer = await served.connect()
    writer.write(_request(CHAT, chat("abc", stream=stream, n=n)))
    await served.engine.held.wait()
    writer.close()
    await served.engine.idle()
    assert served.metrics.exposition().count(b'finish="disconnected"} %d.0' % n) == 1
    status, _ = await _next_request(served)
    assert status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_never_reader_is_cut_off(stream: bool) -> None:
    body = chat("a", stream=stream)
    if not stream:  # an answer larger than what the sockets swallow
        body |= {"n": 16, "logprobs": True, "top_logprobs": 20, "max_tokens": 64}
    async with serve(ServerConfig(stream_write_timeout_s=0.2)) as served:
        if stream:
            served.engine.endless_text = "x" * 4000
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", served.port))
            sock.send(_request(CHAT, body))
            await served.engine.idle()
            assert served.runner.server
            await _until(lambda: not served.runner.server.connections)
        if stream:  # held back by what the client did not take
            assert served.engine.num_deltas * 4000 < 1_000_000
        assert (await _next_request(served))[0] == 200


async def test_slow_reader_gets_everything(served: Served) -> None:
    """Slower than the engine but never stuck: no time limit may hit it."""
    served.engine.endless_text = "x" * 4000
    reader, writer = await served.connect()
    writer.write(_request(CHAT, chat("a", stream=True)))
    received = 0
    while received < 5_000_000:
        received += len(await reader.read(65536))
        await asyncio.sleep(0)
    assert served.engine.open
    writer.close()
    await served.engine.idle()


async def test_good_stream_leaves_the_connection_open(served: Served) -> None:
    reader, writer = await served.connect()
    for _ in range(2):
        writer.write(_request(CHAT, chat("abc", stream=True)))
        assert (await reader.readuntil(b"\r\n0\r\n\r\n")).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
    writer.close()


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never came true")


async def _next_request(served: Served) -> tuple[int, object]:
    served.engine.hold_after = None
    served.engine.endless_text = None
    return await served.post(TEXT, {"prompt": "a"})


def _request(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data
