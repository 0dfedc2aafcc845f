"""What streams notice, on a server whose streams stand still on order."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from bench import disturbance
from bench.disturbance import Streams, run

TOKEN_S = 0.004
STILL_S = 0.3


class Server:
    """Streams tokens by the clock. All streams stand still while a long prompt is computed or the
    model is moved, which takes STILL_S; there is no mesh of three devices."""

    def __init__(self):
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def complete(self, request):
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if len(body["prompt"]) > 100:
            await self.stand_still()
        for n in range(body["max_tokens"]):
            await self.goes_on.wait()
            await asyncio.sleep(TOKEN_S)
            is_last = n + 1 == body["max_tokens"]
            choice = {"index": 0, "text": " a", "finish_reason": "length" if is_last else None}
            event = {"choices": [choice]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        event = {"choices": [], "usage": usage}
        await response.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())
        return response

    async def reshard(self, request):
        if (await request.json())["mesh"] == "tp=3":
            return web.json_response({"error": {"message": "no such mesh"}}, status=400)
        await self.stand_still()
        return web.json_response({"success": True, "paused_s": STILL_S, "compiled_s": None})

    async def stand_still(self):
        self.goes_on.clear()
        await asyncio.sleep(STILL_S)
        self.goes_on.set()


@contextlib.asynccontextmanager
async def served():
    server, app = Server(), web.Application()
    app.router.add_post("/v1/completions", server.complete)
    app.router.add_post("/reshard", server.reshard)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(disturbance, "QUIET_S", 0.2)
    monkeypatch.setattr(disturbance, "AFTER_S", 0.1)


async def test_a_long_prompt():
    async with served() as url:
        summary = await run(url, Streams(3, 20, 250), "prompt", ["200"], vocab_size=99, seed=1)
    assert summary["lost"] == summary["short"] == 0
    assert summary["1_prompt_200_first_token_s"] > STILL_S
    assert summary["1_prompt_200_gap_ms_before"]["max"] < 1e3 * STILL_S
    assert summary["1_prompt_200_gap_ms_meanwhile"]["max"] > 1e3 * STILL_S


async def test_moves():
    async with served() as url:
        meshes = ["tp=1", "tp=2"]
        summary = await run(url, Streams(3, 20, 400), "reshard", meshes, vocab_size=99, seed=1)
    assert summary["lost"] == summary["short"] == 0
    for name in ("1_reshard_tp=1", "2_reshard_tp=2"):
        assert summary[f"{name}_call_s"] > STILL_S
        assert summary[f"{name}_longest_gap_s"] > STILL_S
        assert (summary[f"{name}_paused_s"], summary[f"{name}_compiled_s"]) == (STILL_S, None)


async def test_a_move_that_is_refused():
    async with served() as url:
        with pytest.raises(RuntimeError, match="no such mesh"):
            await run(url, Streams(2, 20, 300), "reshard", ["tp=3"], vocab_size=99, seed=1)
