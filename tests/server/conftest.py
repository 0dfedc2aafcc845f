"""A server on a real socket over the fake engine, with a leak check at its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from jaxsgl.config import ServerConfig
from jaxsgl.metrics import Metrics
from server.app import create_app
from server.site import bind_socket, start_site
from tests.server.fake_engine import FakeEngine


@dataclass
class Served:
    engine: FakeEngine
    metrics: Metrics
    port: int
    session: aiohttp.ClientSession
    runner: web.AppRunner

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and decoded JSON of the answer."""
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def stream(self, path: str, body: Any) -> list[str]:
        """The data of every event of a streamed answer."""
        async with self.session.post(self.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            events = (await response.text()).split("\n\n")
        assert events.pop() == ""
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def serve(
    config: ServerConfig, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Served, None]:
    """Ends with the leak check: no request left in the engine, no task left on the loop, no file
    open that was not before."""
    files = open_files()
    engine, metrics = FakeEngine(), Metrics()
    metrics.watch_engine(engine.stats)
    sock = bind_socket("127.0.0.1", 0)
    port = sock.getsockname()[1]
    runner = await start_site(create_app(engine, config, metrics), sock, tls)
    async with aiohttp.ClientSession() as session:
        yield Served(engine, metrics, port, session, runner)
    await runner.cleanup()
    await asyncio.sleep(0)
    assert engine.open == set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert open_files() - files == set()


def open_files() -> set[str]:
    """By number and what each is. Fonts do not count: matplotlib keeps them open."""
    found = set[str]()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return {name for name in found if not name.endswith(".ttf")}


@pytest.fixture
async def served() -> AsyncGenerator[Served, None]:
    async with serve(ServerConfig()) as served:
        yield served
