"""Twenty minutes with far too few pages: no leak, no deadlock, no growth."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.soak import MEAN_REQUEST_LEN, soak
from tests.e2e.server_process import ServerProcess

MINUTES = 20.0
NUM_CLIENTS = 64
POOL_LEN = NUM_CLIENTS * MEAN_REQUEST_LEN // 10
"""A tenth of what the clients want at any moment."""
MAX_GROWTH = 1.0
"""MiB per minute after the first five minutes."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(
        tmp_path / "log",
        *("--log-level", "warning"),
        *("--schedule-policy", "priority"),
        *("--max-total-tokens", str(POOL_LEN)),
    )
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


@pytest.mark.long
@pytest.mark.timeout(60 * MINUTES + 1200)
async def test_a_pool_of_a_tenth_of_the_demand(server: ServerProcess):
    result = await soak(server.url, server.process.pid, MINUTES, NUM_CLIENTS)
    assert set(result.outcomes) == {"200", "left"}, result.outcomes
    assert min(result.outcomes.values()) > 5 * MINUTES
    assert result.metrics["num_retracted_requests_total"] > MINUTES
    assert result.metrics["num_aborted_requests_total"] > MINUTES
    assert not result.held
    assert result.growth < MAX_GROWTH
    server.signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait_for_exit) == 0
    assert "ERROR" not in server.log and "Traceback" not in server.log
