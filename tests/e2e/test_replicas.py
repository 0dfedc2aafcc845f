"""Two replicas of the real model behind one server, and the deaths of either or both."""

from __future__ import annotations

import asyncio
import json
import random
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

FEW_PROGRAMS = ("--max-num-reqs", "4", "--chunked-prefill-size", "32", "--max-total-tokens", "4096")
TWO = ("--dp", "2", "--max-unhealthy-gpus", "2", "--max-restarts", "1000")
CHAT = "/v1/chat/completions"
TOPICS = ("rivers", "bread", "stars", "chess", "rain", "ships", "bees", "maps")

type Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[ServerProcess] = []

    def start_one(*args: str) -> ServerProcess:
        servers.append(ServerProcess(tmp_path / f"log{len(servers)}", *FEW_PROGRAMS, *args))
        servers[-1].wait_until_ready()
        return servers[-1]

    yield start_one
    for server in servers:
        server.close()


def story(topic: str, num_tokens: int = 60) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"Tell me a story about {topic}."}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def states(client: HttpClient) -> list[str]:
    _, body = await client.get("/admin/replicas")
    return [replica["state"] for replica in body["replicas"]]


async def are(client: HttpClient, *wanted: str) -> None:
    """Returns when the replicas are in these states."""
    async with asyncio.timeout(120):
        while tuple(await states(client)) != wanted:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.05)


async def left_nothing(client: HttpClient, server: ServerProcess) -> None:
    await client.metrics_when(is_idle)
    assert "Traceback" not in server.log
    assert len(server.process.children()) == 2


async def all_stories(client: HttpClient) -> list[str]:
    return await asyncio.gather(*(client.stream_text(CHAT, story(topic)) for topic in TOPICS))


TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


@pytest.mark.long
async def test_answers_of_a_tiny_model_survive_the_death_of_a_replica(start: Start, tmp_path: Path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))
    dummy = ("--load-format", "dummy", "--skip-tokenizer-init")
    server = start(*TWO, "--model-path", str(tmp_path / "tiny"), *dummy)

    async def answer(client: HttpClient, n: int) -> list[int]:
        sampling = {"max_new_tokens": 400, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": [n + 1, 2, 3], "sampling_params": sampling}
        status, reply = await client.post("/generate", body)
        assert status == 200, reply
        return reply["output_ids"]

    async with HttpClient(server.url) as client:
        undisturbed = await asyncio.gather(*(answer(client, n) for n in range(32)))
        assert {len(tokens) for tokens in undisturbed} == {400}
        asking = [asyncio.create_task(answer(client, n)) for n in range(32)]
        await asyncio.sleep(0.3)
        random.Random(0).choice(server.process.children()).kill()
        assert await asyncio.gather(*asking) == undisturbed
        assert (await client.get("/health"))[0] == 200
        await are(client, "ready", "ready")
        assert "became unresponsive. Removed from scheduling pool." in server.log
        assert "Total capacity reduced by 50%." in server.log
        await left_nothing(client, server)


@pytest.mark.long
async def test_streams_survive_the_death_of_a_replica(start: Start):
    server = start(*TWO)
    async with HttpClient(server.url) as client:
        undisturbed = await all_stories(client)
        assert len(set(undisturbed)) == len(TOPICS)

        telling = asyncio.create_task(all_stories(client))
        await client.metrics_when(lambda m: m["jaxsgl_num_running_reqs"] >= 4)
        random.Random(0).choice(server.process.children()).kill()
        assert await telling == undisturbed
        assert (await client.get("/health"))[0] == 200
        await are(client, "ready", "ready")
        assert "became unresponsive. Removed from scheduling pool." in server.log
        assert "Total capacity reduced by 50%." in server.log
        await left_nothing(client, server)


@pytest.mark.long
async def test_the_server_survives_the_death_of_both_replicas(start: Start):
    server = start(*TWO)
    async with HttpClient(server.url) as client:
        undisturbed = await all_stories(client)
        telling = asyncio.create_task(all_stories(client))
        await client.metrics_when(lambda m: m["jaxsgl_num_running_reqs"] >= 4)
        for child in server.process.children():
            child.kill()
        await client.ready_turns(503)
        status, body, headers = await client.post_for_headers(CHAT, story("late"))
        assert (status, body["error"]["type"]) == (503, "server_error")
        assert int(headers["Retry-After"]) >= 1
        assert await telling == undisturbed
        await are(client, "ready", "ready")
        await left_nothing(client, server)


@pytest.mark.long
async def test_a_rolling_restart_then_the_front_is_killed(start: Start):
    server = start("--dp", "2")
    async with HttpClient(server.url) as client:
        undisturbed = await all_stories(client)
        for replica_id in (0, 1):
            telling = asyncio.create_task(all_stories(client))
            status, body = await client.post(f"/admin/replicas/{replica_id}/restart", {})
            assert (status, body["replica_id"]) == (202, replica_id)
            assert await telling == undisturbed
            await are(client, "ready", "ready")
        _, body = await client.get("/admin/replicas")
        assert [replica["epoch"] for replica in body["replicas"]] == [1, 1]
        await left_nothing(client, server)

        children, port = server.process.children(), server.port
        telling = asyncio.create_task(all_stories(client))
        await client.metrics_when(lambda m: m["jaxsgl_num_running_reqs"] >= 4)
        server.signal(signal.SIGKILL)
        await asyncio.wait({telling})
        assert isinstance(telling.exception(), aiohttp.ClientConnectionError)
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=60)
    assert not alive
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.long
async def test_fifty_deaths_under_load_at_random_moments(start: Start):
    server, rng = start(*TWO), random.Random(0)
    async with HttpClient(server.url) as client:
        undisturbed = await all_stories(client)
        for _ in range(50):
            telling = [asyncio.create_task(all_stories(client)) for _ in range(4)]
            await asyncio.sleep(rng.uniform(0, 3))
            rng.choice(server.process.children()).kill()
            assert await asyncio.gather(*telling) == [undisturbed] * 4
            await are(client, "ready", "ready")
        await left_nothing(client, server)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "log_line"),
    [
        ("step:40:raise@0", "a step failed; rebuilding the cache"),
        ("step:40:oom@0", "RESOURCE_EXHAUSTED"),
        ("step:40:hang@0", "exited with code 70"),
        ("step:40:exit@0", "exited with code 1"),
        ("step:40:crash@0", "was killed by SIGSEGV"),
    ],
)
async def test_a_fault_in_a_step_is_not_seen_by_clients(start: Start, fault: str, log_line: str):
    undisturbed_server = start()
    async with HttpClient(undisturbed_server.url) as client:
        undisturbed = await all_stories(client)
    undisturbed_server.close()
    server = start(*TWO, "--inject-fault", fault, "--step-timeout-s", "10")
    async with HttpClient(server.url) as client:
        assert await all_stories(client) == undisturbed
        await are(client, "ready", "ready")
        assert await all_stories(client) == undisturbed
        await client.metrics_when(is_idle)
    assert log_line in server.log


@pytest.mark.long
async def test_poison_is_quarantined_and_everybody_else_finishes(start: Start):
    """Token 9217, an emoji's, ends the process that computes it."""
    server = start(*TWO, "--inject-fault", "token:9217:exit")
    async with HttpClient(server.url) as client:
        undisturbed = await all_stories(client)
        telling = asyncio.create_task(all_stories(client))
        await client.metrics_when(lambda m: m["jaxsgl_num_running_reqs"] >= 4)
        body = {"prompt": [500, 9217, 501], "max_tokens": 4}
        status, reply = await client.post("/v1/completions", body)
        assert (status, reply["error"]["code"]) == (500, "request_quarantined")
        assert await telling == undisturbed
        await are(client, "ready", "ready")
        metrics = await client.metrics_when(is_idle)
        assert metrics["jaxsgl_replica_restarts_total"] <= 3


@pytest.mark.long
async def test_a_slow_replica_gets_less_under_min_latency(start: Start):
    policy = ("--load-balancing-policy", "min-latency", "--enable-metrics")
    server = start(*TWO, *policy, "--inject-fault", "step:1:slow@0")
    async with HttpClient(server.url) as client:
        for _ in range(4):
            await asyncio.gather(*(client.stream_text(CHAT, story(t, 24)) for t in TOPICS))
        _, body = await client.get("/admin/replicas")
        slow, fast = (replica["stats"]["generated_tokens"] for replica in body["replicas"])
        assert fast > 1.5 * slow


@pytest.mark.long
async def test_a_frozen_replica_is_found_within_the_step_deadline(start: Start):
    server = start(*TWO, "--step-timeout-s", "8")
    async with HttpClient(server.url) as client:
        undisturbed = await all_stories(client)
        telling = asyncio.create_task(all_stories(client))
        await client.metrics_when(lambda m: m["jaxsgl_num_running_reqs"] >= 4)
        frozen = server.process.children()[0]
        frozen.suspend()
        begin_s = asyncio.get_running_loop().time()
        while "gave no sign of life" not in server.log:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() - begin_s < 8 + 2
        assert await telling == undisturbed
        await are(client, "ready", "ready")
        await left_nothing(client, server)
