"""A server that answers at once and notes when: `python -m bench.instant_server --log FILE`.

What a load generator reports of it can be compared with what it did. It streams as many events of
one token as `max_tokens` asks for and writes a line of JSON per request, with moments of the
machine's monotonic clock, which is the one of `time.perf_counter` on Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Served:
    """One request as the server saw it."""

    id: str
    body: dict[str, Any]
    received_s: float
    event_s: list[float] = field(default_factory=list[float])
    """When each event with text was handed to the socket."""


Step = Callable[[Served, int], Awaitable[None]]
"""Awaited before event number n of an answer is sent; n = max_tokens is the end of it."""


async def at_once(served: Served, number: int) -> None:
    """The events of an answer follow each other as fast as they can be written."""


class InstantServer:
    """An OpenAI-style server without a model. `step` may hold answers up or break them off."""

    def __init__(
        self,
        step: Step = at_once,
        now_s: Callable[[], float] = time.perf_counter,
        note: Callable[[Served], None] | None = None,
    ) -> None:
        self._step = step
        self._now_s = now_s
        self._note = note
        self.served: list[Served] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        served = Served(request.headers.get("X-Request-Id", ""), body, self._now_s())
        self.served.append(served)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chat, length = "messages" in body, body["max_tokens"]
        event = _event(chat, " a", None)
        for number in range(length):
            await self._step(served, number)
            served.event_s.append(self._now_s())
            await response.write(event)
        await self._step(served, length)
        await response.write(_event(chat, "", "length") + _usage(body) + b"data: [DONE]\n\n")
        await response.write_eof()
        if self._note is not None:
            self._note(served)
        return response


def _event(chat: bool, text: str, finish: str | None) -> bytes:
    said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
    return _data({"choices": [{"index": 0, **said, "finish_reason": finish}]})


def _usage(body: dict[str, Any]) -> bytes:
    prompt = body.get("prompt", "")
    prompt_len = len(prompt) if isinstance(prompt, list) else len(str(body).split())
    usage = {"prompt_tokens": prompt_len, "completion_tokens": body["max_tokens"]}
    return _data({"choices": [], "usage": usage})


def _data(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


async def serve(port: int, log: str) -> None:
    """Until cancelled."""
    with open(log, "w") as file:  # noqa: ASYNC230  (a line per request, flushed at the end)

        def note(served: Served) -> None:
            line = {"id": served.id, "received_s": served.received_s, "event_s": served.event_s}
            file.write(json.dumps(line) + "\n")

        runner = web.AppRunner(InstantServer(note=note).app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        print(f"ready at {site.name.replace(':0', f':{runner.addresses[0][1]}')}", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=30001)
    parser.add_argument("--log", required=True, metavar="FILE")
    args = parser.parse_args()
    try:
        asyncio.run(serve(args.port, args.log))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
