"""What forks have in common, kept by a server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

import jaxsgl as sgl
from server.native.control_routes import ABORT_DECODER
from server.native.generate_body import GENERATE_DECODER, NativeSampling
from tests.lang.test_http import FakeServer

LONG = "Once upon a time. " * 20


class KeepingServer(FakeServer):
    """Takes what a jaxsgl server takes, no more."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.held: dict[str, str] = {}
        """Texts, by the ids of the requests that have them kept."""
        self.is_willing = True
        super().__init__()

    def _add_routes(self, app: web.Application) -> None:
        super()._add_routes(app)
        app.router.add_post("/generate", self._hold)
        app.router.add_post("/abort_request", self._let_go)

    async def _hold(self, request: web.Request) -> web.Response:
        body = GENERATE_DECODER.decode(await request.read())
        assert isinstance(body.text, str) and isinstance(body.rid, str) and body.hold_s == 60
        assert body.sampling_params == NativeSampling(max_new_tokens=0)
        self.asked.append(body.text)
        if not self.is_willing:
            return web.json_response({"error": {"message": "no"}}, status=400)
        self.held[body.rid] = body.text
        return web.json_response({"text": ""})

    async def _let_go(self, request: web.Request) -> web.Response:
        self.held.pop(ABORT_DECODER.decode(await request.read()).rid or "", None)
        return web.json_response({"status": "aborted"})


@pytest.fixture
def server() -> Iterator[KeepingServer]:
    server = KeepingServer()
    yield server
    assert not server.held
    server.close()


@sgl.function
def two_ways(s: Any, beginning: Any, server: KeepingServer, num_held: int) -> None:
    is_chat = not isinstance(beginning, str)
    s += beginning
    forks = s.fork(2)
    for fork in forks:
        fork += sgl.assistant(sgl.gen("x")) if is_chat else sgl.gen("x")
        assert fork["x"] == "ok"
    until_s = time.monotonic() + 20
    while len(server.held) < num_held and time.monotonic() < until_s:
        time.sleep(0.005)
    assert list(server.held.values()) == [beginning] * num_held


def test_a_text_is_kept_while_forks_go_on(server: KeepingServer) -> None:
    backend = sgl.RuntimeEndpoint(server.url)
    two_ways.run(LONG, server, 1, backend=backend)
    until_s = time.monotonic() + 20
    while server.held and time.monotonic() < until_s:
        time.sleep(0.005)
    assert server.asked == [LONG] and not server.held
    backend.close()


def test_what_is_not_kept(server: KeepingServer) -> None:
    backend = sgl.RuntimeEndpoint(server.url)
    two_ways.run("short", server, 0, backend=backend)
    two_ways.run(sgl.user(LONG), server, 0, backend=backend)
    backend.close()
    backend = sgl.OpenAI("some-model", base_url=f"{server.url}/v1")
    two_ways.run(LONG, server, 0, backend=backend)
    backend.close()
    assert not server.asked


def test_a_server_that_keeps_nothing_is_no_error(server: KeepingServer) -> None:
    server.is_willing = False
    backend = sgl.RuntimeEndpoint(server.url)
    two_ways.run(LONG, server, 0, backend=backend)
    backend.close()
