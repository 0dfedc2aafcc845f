"""Two replicas in a Ray cluster of this machine. Needs `pip install 'jaxsgl[ray]'`."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.e2e.http_client import HttpClient, is_idle
from tests.e2e.server_process import ROOT, ServerProcess
from tests.e2e.test_replicas import FEW_PROGRAMS, TINY, are

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'jaxsgl[ray]'"),
]

NUM_REQUESTS = 16


class Cluster:
    def __init__(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.ray_cluster", "3"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        assert self._popen.stdout is not None
        self.address = self._popen.stdout.readline().strip()
        assert self.address

    def actors(self) -> list[psutil.Process]:
        """Those that run a replica."""
        found = psutil.Process(self._popen.pid).children(recursive=True)
        return [process for process in found if is_actor(process)]

    def close(self) -> None:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait(60)
        self._popen.stdout.close()


def is_actor(process: psutil.Process) -> bool:
    try:
        return any("ray::ReplicaProcess" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    # Only who has the token, the server among them, may use the cluster.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cluster = Cluster()
    yield cluster
    cluster.close()


async def test_replicas_of_a_cluster_and_the_death_of_an_actor(cluster: Cluster, tmp_path: Path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))
    server = ServerProcess(
        tmp_path / "log",
        *("--launcher", "ray", "--ray-address", cluster.address, "--dp", "2"),
        *("--model-path", str(tmp_path / "tiny"), "--load-format", "dummy"),
        *("--skip-tokenizer-init", "--max-unhealthy-gpus", "2", *FEW_PROGRAMS),
    )
    try:
        server.wait_until_ready()
        assert len(cluster.actors()) == 2
        async with HttpClient(server.url) as client:
            undisturbed = await answers(client)
            asking = asyncio.create_task(answers(client))
            await asyncio.sleep(0.3)
            cluster.actors()[0].kill()
            assert await asking == undisturbed
            await are(client, "ready", "ready")
            assert len(cluster.actors()) == 2
            assert "became unresponsive. Removed from scheduling pool." in server.log
            assert await answers(client) == undisturbed
            # A replica process that dies leaves its actor to say how.
            cluster.actors()[0].children()[0].kill()
            await are_not(client, "ready", "ready")
            await are(client, "ready", "ready")
            assert "was killed by SIGKILL" in server.log
            assert await answers(client) == undisturbed
            await client.metrics_when(is_idle)
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == 0
        assert "Traceback" not in server.log
        gone_by = time.monotonic() + 30
        while cluster.actors() and time.monotonic() < gone_by:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.1)
        assert not cluster.actors()
    finally:
        server.close()


async def are_not(client: HttpClient, *states: str) -> None:
    async with asyncio.timeout(60):
        while True:
            _, body = await client.get("/admin/replicas")
            if [replica["state"] for replica in body["replicas"]] != list(states):
                return
            await asyncio.sleep(0.02)


async def answers(client: HttpClient) -> list[list[int]]:
    async def answer(n: int) -> list[int]:
        sampling = {"max_new_tokens": 400, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": [n + 1, 2, 3], "sampling_params": sampling}
        status, reply = await client.post("/generate", body)
        assert status == 200, reply
        return reply["output_ids"]

    return await asyncio.gather(*(answer(n) for n in range(NUM_REQUESTS)))
