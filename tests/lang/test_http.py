"""Remote back ends against an HTTP server that says what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

import jaxsgl as sgl
from jaxsgl.interface import DeadlineExceeded, EngineError, InvalidRequest, QueueFull, Unavailable
from jaxsgl.offline.background import BackgroundLoop
from tests.actors.waiting import until


class FakeServer:
    """Answers "ok", in two pieces; a prompt or message that is a word of `_special` breaks."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.num_hung = 0
        """Requests that will have no end, so far."""
        self.num_hanging = 0
        """Those whose client is still there."""
        self._loop = BackgroundLoop("http")
        self._runner, self.url = self._loop.run(self._serve())

    async def _serve(self) -> tuple[web.AppRunner, str]:
        app = web.Application()
        self._add_routes(app)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/{path:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.paths.append(request.path)
        is_chat = "messages" in body
        said = body["messages"][-1]["content"] if is_chat else body["prompt"]
        if said == "hang":
            return await self._hang(request)
        if said.isdigit():
            error = {"message": "refused", "param": "p", "code": "c"}
            return web.json_response({"error": error}, status=int(said))
        response = web.StreamResponse()
        await response.prepare(request)
        for text in ("o", "k"):
            part = {"delta": {"content": text}} if is_chat else {"text": text}
            await self._send(response, {"choices": [{**part, "finish_reason": None}]})
        if said == "broken":
            await self._send(response, {"error": {"message": "broken"}})
        end: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        await self._send(response, {"choices": [{**end, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        await self._send(response, {"choices": [], "usage": usage})
        if said != "cut":
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    async def _hang(self, request: web.Request) -> web.StreamResponse:
        """Says "o", and no more."""
        self.num_hung += 1
        self.num_hanging += 1
        try:
            response = web.StreamResponse()
            await response.prepare(request)
            await self._send(response, {"choices": [{"text": "o", "finish_reason": None}]})
            await asyncio.Event().wait()
        finally:
            self.num_hanging -= 1
        return response

    def wait_until_gone(self) -> None:
        async def gone() -> None:
            await until(lambda: not self.num_hanging)

        self._loop.run(gone())

    def close(self) -> None:
        self._loop.run(self._runner.cleanup())
        self._loop.close()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture(params=["openai", "jaxsgl"])
def remote(request: Any, server: FakeServer) -> Iterator[sgl.OpenAI]:
    server.bodies.clear()
    server.paths.clear()
    if request.param == "openai":
        backend = sgl.OpenAI("some-model", base_url=f"{server.url}/v1/", api_key="key")
    else:
        backend = sgl.RuntimeEndpoint(server.url)
    yield backend
    backend.close()
    backend.close()


@pytest.fixture
def endpoint(server: FakeServer) -> Iterator[sgl.RuntimeEndpoint]:
    backend = sgl.RuntimeEndpoint(server.url)
    yield backend
    backend.close()


@sgl.function
def chat(s: Any, question: str, **options: Any) -> None:
    s += sgl.user(question) + sgl.assistant(sgl.gen("x", **options))


@sgl.function
def plain(s: Any, text: str, **options: Any) -> None:
    s += text + sgl.gen("x", **options)


def test_a_conversation(remote: sgl.OpenAI, server: FakeServer) -> None:
    @sgl.function
    def program(s: Any) -> None:
        chat(s, "Hi", max_tokens=5, stop="\n", seed=3)
        s += sgl.user("again") + sgl.assistant(sgl.gen("y", temperature=0))

    state = program.run(backend=remote)
    assert (state["x"], state["y"], server.paths) == ("ok", "ok", ["/v1/chat/completions"] * 2)
    first, second = server.bodies
    assert first["messages"] == [{"role": "user", "content": "Hi"}]
    assert (first["max_tokens"], first["stop"], first["seed"]) == (5, ["\n"], 3)
    assert [message["content"] for message in second["messages"]] == ["Hi", "ok", "again"]
    assert second["temperature"] == 0
    meta = state.get_meta_info("x")
    assert (meta["finish_reason"], meta["prompt_tokens"]) == ({"type": "stop"}, 5)
    assert state.text() == "user:\nHi\nassistant:\nok\nuser:\nagain\nassistant:\nok\n"


def test_a_text(remote: sgl.OpenAI, server: FakeServer) -> None:
    state = plain.run("Once", backend=remote, stream=True)
    assert list(state.text_iter("x")) == ["o", "k"] and state.text() == "Onceok"
    assert (server.paths, server.bodies[0]["prompt"]) == (["/v1/completions"], "Once")


def test_forms_on_a_jaxsgl_server(endpoint: sgl.RuntimeEndpoint, server: FakeServer) -> None:
    server.bodies.clear()
    for form in ({"regex": "a"}, {"grammar": 'start: "a"'}, {"ebnf": 'root ::= "a"'}):
        plain.run("Once", **form, top_k=3, backend=endpoint)
    with pytest.raises(sgl.InvalidAnswer):
        chat.run("Hi", json_schema={"type": "object"}, backend=endpoint)
    names = [name for name in ("regex", "lark", "ebnf") for body in server.bodies if name in body]
    assert names == ["regex", "lark", "ebnf"]
    assert server.bodies[0]["top_k"] == 3 and server.bodies[0]["strict_complete"] is True
    schema = server.bodies[3]["response_format"]["json_schema"]["schema"]
    assert schema == {"type": "object"}


def test_selecting_on_a_server(endpoint: sgl.RuntimeEndpoint, server: FakeServer) -> None:
    server.bodies.clear()

    @sgl.function
    def program(s: Any, method: Any) -> None:
        s += "Once" + sgl.select("x", ["ok", "no"], choices_method=method)

    assert program.run(method="greedy_token_selection", backend=endpoint)["x"] == "ok"
    assert server.bodies[0]["choice"] == ["ok", "no"]
    with pytest.raises(sgl.ProgramError, match="greedy_token_selection"):
        program.run(method="token_length_normalized", backend=endpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a"}, "cannot hold an answer to a Regex"),
        ({"top_k": 3}, "have no top_k"),
        ({"choices": ["a"]}, "cannot score choices"),
    ],
)
def test_what_openai_cannot_do_is_refused(server: FakeServer, options: Any, message: str) -> None:
    backend = sgl.OpenAI("m", base_url=f"{server.url}/v1")
    with pytest.raises(sgl.ProgramError, match=message):
        chat.run("Hi", **options, backend=backend)
    backend.close()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: sgl.user("a") + sgl.gen("x"), "must stand in an assistant turn"),
        (
            lambda: sgl.user("a") + sgl.assistant("b" + sgl.gen("x")),
            "begins an assistant turn anew",
        ),
        (lambda: "text" + sgl.user("a") + sgl.assistant(sgl.gen("x")), "not both"),
    ],
)
def test_what_no_request_can_say_is_refused(remote: sgl.OpenAI, parts: Any, message: str) -> None:
    with pytest.raises(sgl.ProgramError, match=message):
        sgl.function(lambda s: s.__iadd__(parts())).run(backend=remote)
    with pytest.raises(sgl.ProgramError, match="servers do not tell"):
        plain.run("Once", backend=remote).token_ids()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("400", InvalidRequest, "refused"),
        ("429", QueueFull, "refused"),
        ("503", Unavailable, "refused"),
        ("500", EngineError, "refused"),
        ("broken", EngineError, "broken"),
        ("cut", Unavailable, "cut off"),
    ],
)
def test_errors(remote: sgl.OpenAI, text: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        plain.run(text, backend=remote)


def test_a_server_that_is_not_there() -> None:
    backend = sgl.RuntimeEndpoint("http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        plain.run("Once", backend=backend)
    backend.close()


def test_a_limit_and_a_cancelled_run_close_the_connection(
    endpoint: sgl.RuntimeEndpoint, server: FakeServer
) -> None:
    limit_s = 0.2
    while not server.num_hung:  # the time may be over before the server has the request
        with pytest.raises(DeadlineExceeded):
            plain.bind(timeout_s=limit_s).run("hang", backend=endpoint)
        limit_s *= 2
    server.wait_until_gone()
    state = plain.run("hang", backend=endpoint, stream=True)
    assert next(state.text_iter("x")) == "o"
    state.cancel()
    server.wait_until_gone()
