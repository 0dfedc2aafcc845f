"""One real server for every test that talks HTTP and leaves it alive."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.http_client import HttpClient, is_idle
from tests.e2e.server_process import ServerProcess


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With the settings that `make serve` has. Its end shows what all tests together left."""
    server = ServerProcess(tmp_path_factory.mktemp("server") / "log")
    try:
        server.wait_until_ready()
        yield server
        metrics = asyncio.run(_last_metrics(server.url))
        assert metrics["jaxsgl_recompiles_total"] == 0
        assert is_idle(metrics)
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == 0
        assert "ERROR" not in server.log and "Traceback" not in server.log
    finally:
        server.close()


async def _last_metrics(url: str) -> dict[str, float]:
    async with HttpClient(url) as client:
        return await client.metrics_when(is_idle)


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[HttpClient]:
    async with HttpClient(server.url) as client:
        yield client
