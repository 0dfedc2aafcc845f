"""What the client notes, over real sockets, of a server whose every moment is known.

Server and client read one clock that only the server moves, and it moves it when the client has
noted everything before: so what is noted has to be exact.
"""

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from bench.instant_server import InstantServer
from bench.serving.backends import BACKENDS
from bench.serving.client import Client, Clock
from bench.serving.datasets import Turn
from bench.serving.driver import Load, LoadShape
from bench.serving.records import Record
from tests.actors.waiting import until


class HandClock(Clock):
    def __init__(self):
        super().__init__()
        self.moment_s = 0.0

    def now_s(self):
        return self.moment_s


@asynccontextmanager
async def client_of(app: web.Application, backend="jaxsgl", timeout_s=20.0):
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        yield Client(session, url, BACKENDS[backend], timeout_s)
    await runner.cleanup()


def body(backend="jaxsgl", length=4):
    asked = {"messages": []} if BACKENDS[backend].chat else {"prompt": [7, 8, 9]}
    return {**asked, "max_tokens": length, "stream": True}


@pytest.mark.parametrize("backend", list(BACKENDS))
async def test_every_moment_is_exact(backend):
    clock = HandClock()
    record = Record(conversation=3, turn=1, due_s=0.5)

    async def step(served, number):
        await until(lambda: len(record.event_s) == number)
        clock.moment_s += 2.0 if number == 0 else 0.25

    server = InstantServer(step, clock.now_s)
    clock.moment_s = 1.0
    async with client_of(server.app(), backend) as client:
        text = await client.send(body(backend), record, clock)
    (served,) = server.served
    assert text == " a a a a"
    assert served.id == record.id == "bench-3-1"
    assert (record.sent_s, served.received_s) == (1.0, 1.0)
    assert record.event_s == served.event_s == [3.0, 3.25, 3.5, 3.75]
    assert record.end_s == 4.0
    assert (record.ttft_s, record.tpot_s, record.e2e_s) == (2.5, 0.25, 3.5)
    assert record.gaps_s == [0.25] * 3
    assert record.send_lag_s == 0.5
    assert (record.output_len, record.finish, record.ok) == (4, "length", True)
    if backend != "openai-chat":
        assert record.input_len == 3


async def test_a_slow_server_with_one_place_is_not_made_to_look_fast():
    clock = HandClock()

    async def step(served, number):
        if number == 0:
            clock.moment_s += 10.0

    async with client_of(InstantServer(step, clock.now_s).app()) as client:

        def start():
            async def send(record, turn):
                await client.send(body(length=1), record, clock)

            return send

        shape = LoadShape([0.0] * 3, 1, None, 60.0)
        load = Load([(Turn("", 1),)] * 3, start, shape, clock)
        await load.run()
    assert [record.ttft_s for record in load.records] == [10.0, 20.0, 30.0]


async def failing(handle, timeout_s=20.0, path="/v1/completions"):
    app = web.Application()
    app.router.add_post(path, handle)
    record = Record(0, 0, 0.0)
    async with client_of(app, timeout_s=timeout_s) as client:
        await client.send(body(), record, Clock())
    assert record.failed and not record.ok
    assert record.end_s is not None
    return record


def streaming(*parts, break_off=False):
    async def handle(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if break_off:
            request.transport.abort()
        return response

    return handle


TOKEN = b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n'


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (b"data: {oops\n\n", "malformed"),
        (b'data: {"choices": 3}\n\n', "malformed"),
        (b"", "cut_short"),
        (b"data: [DONE]\n\n", "cut_short"),
        (b'data: {"error": {"message": "broken"}}\n\n', "server_error"),
        (b'data: {"error": {"message": "broken"}}\n\ndata: {oops\n\n', "server_error"),
        (b'data: {"object": "error", "message": "broken"}\n\n', "server_error"),
    ],
)
async def test_broken_streams_are_told_apart(end, kind):
    record = await failing(streaming(TOKEN, end))
    assert record.error == kind
    assert len(record.event_s) == 1
    if kind == "server_error":
        assert record.detail == "broken"


def part(text, finish=None):
    choice = {"text": text, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("parts", "num_events"),
    [
        ([part("a"), part("b"), part("", "length")], 2),
        ([part("a"), part(""), part("\u00e9", "length")], 3),
        ([part(""), part(""), part("", "length")], 3),  # a server without a tokenizer
    ],
)
async def test_tokens_without_text_count(parts, num_events):
    app = web.Application()
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\n'
    app.router.add_post("/v1/completions", streaming(*parts, usage, b"data: [DONE]\n\n"))
    record = Record(0, 0, 0.0)
    async with client_of(app) as client:
        await client.send(body(), record, Clock())
    assert record.ok
    assert (len(record.event_s), record.output_len) == (num_events, 3)


async def test_a_connection_that_breaks():
    record = await failing(streaming(TOKEN, break_off=True))
    assert record.error == "disconnected"


async def test_refusals_have_their_status():
    async def refuse(request):
        return web.json_response({"error": {"message": "full"}}, status=503)

    record = await failing(refuse)
    assert record.error == "http_503"
    assert "full" in record.detail


async def test_a_server_that_never_answers_costs_the_time_out():
    async def hang(request):
        await asyncio.Event().wait()

    record = await failing(hang, timeout_s=0.05)
    assert record.error == "timeout"


async def test_nobody_there():
    record = Record(0, 0, 0.0)
    async with aiohttp.ClientSession() as session:
        client = Client(session, "http://127.0.0.1:1", BACKENDS["jaxsgl"], 5.0)
        await client.send(body(), record, Clock())
    assert record.error == "connect"
