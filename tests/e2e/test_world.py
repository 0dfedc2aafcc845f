"""One replica over two processes, as two machines would run it: with tp=2 across them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.http_client import HttpClient, is_idle
from tests.e2e.server_process import COMMAND, END_TIMEOUT_S, ROOT, ServerProcess
from tests.e2e.test_replicas import TINY, are
from tests.tokenizer.test_tokenizer_folder import byte_level, write

pytestmark = pytest.mark.long

FEW_PROGRAMS = ("--max-num-reqs", "2", "--chunked-prefill-size", "16", "--max-total-tokens", "4096")
ANSWER_LEN = 100
PROMPTS = [[n + 1, 2, 3, n] for n in range(8)]
SAMPLED = {"temperature": 0.8, "sampling_seed": 7, "frequency_penalty": 0.5}
MASKED = {"regex": "[a-z]{200}"}


class Follower:
    """`python -m jaxsgl.serve` of rank 1."""

    def __init__(self, log: Path, *args: str) -> None:
        self._log = log
        with log.open("wb") as stderr:
            command = [*COMMAND, "--node-rank", "1", *args]
            self.popen = subprocess.Popen(command, stderr=stderr, cwd=ROOT)
        self.process = psutil.Process(self.popen.pid)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def child(self) -> psutil.Process:
        (child,) = self.process.children()
        return child

    def close(self) -> None:
        if self.popen.poll() is None:
            for process in [self.process, *self.process.children()]:
                process.kill()
        self.popen.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "tiny").mkdir()
    # More tokens than the tokenizer has.
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY | {"vocab_size": 512}))
    write(tmp_path / "tiny", byte_level())
    return ("--model-path", str(tmp_path / "tiny"), "--load-format", "dummy", *FEW_PROGRAMS)


@pytest.fixture
def world(tmp_path: Path, model: tuple[str, ...]) -> Iterator[tuple[ServerProcess, Follower]]:
    key = tmp_path / "key"
    key.write_text("a secret of more than 16 characters\n")
    args = (
        *model,
        *("--tp", "2", "--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{free_port()}"),
        *("--world-key-file", str(key), "--max-unhealthy-gpus", "2", "--max-restarts", "100"),
    )
    follower = Follower(tmp_path / "follower", *args)
    server = ServerProcess(tmp_path / "leader", *args)
    try:
        server.wait_until_ready()
        yield server, follower
    finally:
        server.close()
        follower.close()


@pytest.fixture
def one(tmp_path: Path, model: tuple[str, ...]) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path / "one", *model)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


async def answer(client: HttpClient, prompt: list[int], **sampling: Any) -> list[int]:
    sampling = {"max_new_tokens": ANSWER_LEN, "temperature": 0, "ignore_eos": True} | sampling
    body = {"input_ids": prompt, "sampling_params": sampling}
    status, reply = await client.post("/generate", body)
    assert status == 200, reply
    return reply["output_ids"]


async def answers(client: HttpClient, **sampling: Any) -> list[list[int]]:
    return await asyncio.gather(*(answer(client, prompt, **sampling) for prompt in PROMPTS))


async def operate(client: HttpClient, route: str, body: dict[str, Any]) -> None:
    status, reply = await client.post(route, body)
    assert status == 200, reply


async def test_two_processes_draw_what_one_does(
    world: tuple[ServerProcess, Follower], one: ServerProcess
):
    server, follower = world
    async with HttpClient(one.url) as alone:
        greedy = await answers(alone)
        sampled = await answers(alone, **SAMPLED)
        masked = await answers(alone, **MASKED)
    # Weights of so few values send some prompts the same way.
    assert len({tuple(tokens) for tokens in (*greedy, *sampled)}) > len(PROMPTS)
    assert len({token for tokens in masked for token in tokens}) <= 26
    assert {len(tokens) for tokens in (*greedy, *sampled, *masked)} == {ANSWER_LEN}
    async with HttpClient(server.url) as client:
        assert await answers(client) == greedy
        assert await answers(client, **SAMPLED) == sampled
        assert await answers(client, **MASKED) == masked
        # Operations happen on both, between the same steps.
        await operate(client, "/release_memory_occupation", {})
        await operate(client, "/resume_memory_occupation", {})
        assert await answers(client) == greedy
        await operate(client, "/reshard", {"sharding_rules": "mlp-only"})
        assert await answers(client) == greedy
        status, reply = await client.post("/reshard", {"mesh": "tp=1"})
        assert status == 400 and "2 machines" in reply["error"]["message"]
        assert await answers(client) == greedy
        metrics = await client.metrics_when(is_idle)
        assert metrics["jaxsgl_recompiles_total"] == 0
        assert metrics["jaxsgl_cache_rebuilds_total"] == 0
    server.signal(signal.SIGTERM)
    assert server.wait_for_exit() == 0
    assert "Traceback" not in server.log + follower.log
    # The other machine waits for the next server, until it is told to stop.
    assert follower.popen.poll() is None
    follower.popen.send_signal(signal.SIGTERM)
    assert follower.popen.wait(END_TIMEOUT_S) == 0


@pytest.mark.parametrize("victim", ["follower", "leader"])
async def test_requests_survive_the_death_of_a_process(
    world: tuple[ServerProcess, Follower], victim: str
):
    server, follower = world
    async with HttpClient(server.url) as client:
        undisturbed = await answers(client)
        both = [server.replica(), follower.child()]
        asking = asyncio.create_task(answers(client))
        await asyncio.sleep(0.5)
        dying = both[1] if victim == "follower" else both[0]
        dying.kill()
        killed_at = time.monotonic()
        while any(process.is_running() for process in both):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)
        assert time.monotonic() - killed_at < 10
        assert await asking == undisturbed
        await are(client, "ready")
        assert await answers(client) == undisturbed
        assert "CPU 1:0 became unresponsive. Removed from scheduling pool." in server.log
        if victim == "follower":
            assert "the process of rank 1 is gone" in server.log
        await client.metrics_when(is_idle)
