"""Signals and the deaths of either process, with the real model and few programs to compile."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.e2e.http_client import HttpClient, is_idle
from tests.e2e.server_process import ServerProcess

FEW_PROGRAMS = ("--max-num-reqs", "2", "--chunked-prefill-size", "16", "--max-total-tokens", "2048")

CUT_OFF = 503
"""Status of a whole reply that its replica did not survive."""

CHAT = "/v1/chat/completions"

type Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[ServerProcess] = []

    def start_one(*args: str) -> ServerProcess:
        log = tmp_path / f"log{len(servers)}"
        servers.append(ServerProcess(log, *FEW_PROGRAMS, *args))
        return servers[-1]

    yield start_one
    for server in servers:
        server.close()


def long_chat(num_tokens: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def ask(client: HttpClient, num_tokens: int) -> tuple[int, Any]:
    return await client.post(CHAT, long_chat(num_tokens))


async def are_inside(client: HttpClient, *asking: asyncio.Task[Any]) -> None:
    """Returns when each of these is at the replica, or answered."""
    async with asyncio.timeout(60):
        while await client.num_in_flight() < sum(not task.done() for task in asking):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def successor_of(server: ServerProcess, old: psutil.Process) -> psutil.Process:
    """The process of a replica that is being started again."""
    async with asyncio.timeout(60):
        while True:
            found = [p for p in server.process.children() if p != old and is_replica(p)]
            if found:
                return found[0]
            await asyncio.sleep(0.02)


def is_replica(process: psutil.Process) -> bool:
    """Not before it runs its program: until then its parent waits for it, and stops with it."""
    try:
        return "jaxsgl.replicas.replica_process" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


async def test_a_killed_replica_is_replaced_and_sigterm_lets_requests_finish(start: Start):
    server = start("--max-unhealthy-gpus", "1")
    server.wait_until_ready()
    old = server.replica()
    async with HttpClient(server.url) as client:
        begun = asyncio.Event()
        asking = asyncio.create_task(ask(client, 240))
        streaming = asyncio.create_task(client.stream_text(CHAT, long_chat(240), begun))
        await begun.wait()
        await are_inside(client, asking, streaming)
        old.kill()
        successor = await successor_of(server, old)
        successor.suspend()  # until everything was seen that is so while it loads
        await client.ready_turns(503)
        assert (await ask(client, 1))[0] == 503
        await client.health_turns(503)
        successor.resume()
        await client.ready_turns(200)
        status, reply = await asking
        assert (status, reply["usage"]["completion_tokens"]) == (200, 240)
        assert await streaming == reply["choices"][0]["message"]["content"]
        assert server.replica() == successor != old
        assert server.log.count("building the replica") == 2
        assert "jax._src" not in server.log
        assert "killed by SIGKILL" in server.log and "restarting replica 0" in server.log
        assert "CPU 0 became unresponsive. Removed from scheduling pool." in server.log
        assert "Active CPUs: []. Total capacity reduced by 100%." in server.log
        assert "Paris" in await client.capital()
        metrics = await client.metrics_when(is_idle)
        assert metrics["jaxsgl_replica_restarts_total"] == 1

        begun = asyncio.Event()
        asking = asyncio.create_task(ask(client, 60))
        streaming = asyncio.create_task(client.stream_answer(CHAT, long_chat(60), begun))
        await begun.wait()
        await are_inside(client, asking, streaming)
        successor.suspend()  # or the server might be gone before it was asked again
        server.signal(signal.SIGTERM)
        await client.ready_turns(503)
        assert (await ask(client, 1))[0] == 503
        successor.resume()
        status, reply = await asking
        assert (status, reply["usage"]["completion_tokens"]) == (200, 60)
        assert await streaming == (reply["choices"][0]["message"]["content"], 60)
    assert await asyncio.to_thread(server.wait_for_exit) == 0
    assert "Traceback" not in server.log


async def test_without_leave_to_go_on_a_death_ends_the_server(start: Start):
    server = start()
    server.wait_until_ready()
    async with HttpClient(server.url) as client:
        asking = asyncio.create_task(ask(client, 900))
        await are_inside(client, asking)
        server.replica().kill()
        status, reply = await asking
        assert (status, reply["error"]["message"]) == (CUT_OFF, "no replica is ready")
    assert await asyncio.to_thread(server.wait_for_exit) == 1
    assert "giving up: replica 0 was killed by SIGKILL" in server.log


async def test_a_second_signal_ends_at_once(start: Start):
    server = start("--drain-timeout-s", "1000", "--log-level", "warning")
    server.wait_until_ready()
    replica = server.replica()
    async with HttpClient(server.url) as client:
        asking = asyncio.create_task(ask(client, 1500))
        await are_inside(client, asking)
        server.signal(signal.SIGINT)
        await client.ready_turns(503)
        server.signal(signal.SIGTERM)
        status, reply = await asking
    assert await asyncio.to_thread(server.wait_for_exit) == 0
    assert status == CUT_OFF and reply["error"]["message"]
    assert not replica.is_running()
    assert server.log == ""  # neither process had a warning to give


async def test_when_the_drain_time_is_over_requests_are_ended(start: Start):
    server = start("--drain-timeout-s", "0.2")
    server.wait_until_ready()
    async with HttpClient(server.url) as client:
        begun = asyncio.Event()
        asking = asyncio.create_task(ask(client, 900))
        streaming = asyncio.create_task(client.last_event(CHAT, long_chat(900), begun))
        await begun.wait()
        await are_inside(client, asking, streaming)
        server.signal(signal.SIGTERM)
        status, reply = await asking
        assert status == CUT_OFF
        for last in (reply, await streaming):
            assert last["error"]["message"] == "the server is stopping"
    assert await asyncio.to_thread(server.wait_for_exit) == 0
    assert "Traceback" not in server.log


async def test_a_killed_front_takes_its_replica_along(start: Start):
    server = start()
    server.wait_until_ready()
    replica, port = server.replica(), server.port
    async with HttpClient(server.url) as client:
        asking = asyncio.create_task(ask(client, 1500))
        await are_inside(client, asking)
        server.signal(signal.SIGKILL)
        await asyncio.wait({asking})
        assert isinstance(asking.exception(), aiohttp.ClientConnectionError)
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [replica], timeout=60)
    assert gone
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_signal_while_it_loads(start: Start):
    server = start()
    while not server.process.children():
        assert server.process.is_running(), server.log
    replica = server.replica()
    server.signal(signal.SIGTERM)
    assert server.wait_for_exit() == 0
    assert not replica.is_running()
    assert "Traceback" not in server.log
