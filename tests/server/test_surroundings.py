"""A machine that is short of things, or behaves oddly: the server goes on."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from jaxsgl.config import ServerConfig
from jaxsgl.serve import _say, _with_open_files
from tests.server.conftest import Served
from tests.server.few_files_child import NUM_FILES

ROOT = Path(__file__).parents[2]
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def child() -> Iterator[tuple[psutil.Process, int]]:
    """A server of few files whose standard output is closed, and its port."""
    shell = ["sh", "-c", 'exec "$@" >&-', "sh"]
    command = [*shell, sys.executable, "-m", "tests.server.few_files_child"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stderr is not None
            yield psutil.Process(popen.pid), int(popen.stderr.readline())
            popen.send_signal(signal.SIGTERM)
            assert popen.wait(30) == 0, popen.stderr.read()
        finally:
            popen.kill()


async def is_healthy(port: int) -> bool:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
        async with session.get(f"http://127.0.0.1:{port}/health") as response:
            return response.status == 200


async def test_files_run_out_and_come_back(child: tuple[psutil.Process, int]) -> None:
    """Standard output is closed and a pipe breaks, too."""
    process, port = child
    process.send_signal(signal.SIGPIPE)
    assert await is_healthy(port)
    num_files = process.num_fds()
    clients = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(NUM_FILES + 20)]
    for client in clients:
        client.sendall(HEALTH)
    assert await asyncio.to_thread(clients[0].recv, 15) == b"HTTP/1.1 200 OK"
    for client in clients:
        client.close()
    assert await is_healthy(port)  # once it accepts again: asyncio waits for a second
    async with asyncio.timeout(20):
        while process.num_fds() > num_files:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.02)


async def test_clocks_jump(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.engine.hold_after = 1
    body = {"prompt": "ab", "max_tokens": 3, "timeout_s": 600}
    now_s = time.time()
    for jump_s in (3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda: now_s)
        served.engine.held.clear()
        served.engine.release.clear()
        asking = asyncio.create_task(served.post("/v1/completions", body))
        await served.engine.held.wait()
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now_s + jump_s)
        served.engine.release.set()
        status, answer = await asking
        assert (status, answer["choices"][0]["text"]) == (200, "aba")
        assert (await served.get("/get_server_info"))[0] == 200


def test_what_waits_goes_by_a_clock_that_does_not_jump() -> None:
    """The time of day is told, and nothing is reckoned by it."""
    tells = {"server/app.py", "server/chat_plan.py", "server/native/info_routes.py"}
    files = [path for name in ("jaxsgl", "server") for path in (ROOT / name).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if "time.time()" in path.read_text()}
    assert found == tells


async def test_no_name_is_looked_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*args: object, **options: object) -> None:
        raise socket.gaierror("no name server")

    monkeypatch.setattr(socket, "getaddrinfo", down)
    monkeypatch.setattr(socket, "gethostbyaddr", down)
    assert (await served.post("/v1/completions", {"prompt": "a", "max_tokens": 1}))[0] == 200
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    messages = [{"role": "user", "content": [image]}]
    assert (await served.post("/v1/chat/completions", {"messages": messages}))[0] == 400


def test_standard_streams_that_are_closed() -> None:
    code = "import sys; from jaxsgl.serve import main; sys.exit(main(['--no-such-flag']))"
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT).returncode == 2


def test_nobody_reads_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        _say("ready\n")
        _say("still ready\n")


@pytest.mark.parametrize(
    ("limits", "raised", "num_connections"),
    [
        ((1024, 4096), (1256, 4096), 1000),
        ((1024, resource.RLIM_INFINITY), (1256, resource.RLIM_INFINITY), 1000),
        ((2000, 4096), None, 1000),
        ((512, 1024), (1024, 1024), 768),
        ((64, 64), (64, 64), 32),
    ],
)
def test_as_many_connections_as_files_allow(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    raised: tuple[int, int] | None,
    num_connections: int,
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: told.append(both))
    config = _with_open_files(ServerConfig(max_connections=1000))
    assert config.max_connections == num_connections
    assert told == ([] if raised is None else [raised])
