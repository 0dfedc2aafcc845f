"""Health, readiness, metrics, and the line each request leaves in the log."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import yarl

from tests.server.conftest import Served
from tests.server.test_openai_routes import CHAT, TEXT, chat


async def test_health_and_readiness_are_apart(served: Served) -> None:
    assert await served.get("/health") == (200, {"status": "ok"})
    assert await served.get("/ready") == (200, {"status": "ready"})
    served.engine.ready = False
    assert (await served.get("/health"))[0] == 200
    assert (await served.get("/ready"))[0] == 503
    served.engine.alive = False
    assert (await served.get("/health"))[0] == 503


async def test_health_while_requests_hang(served: Served) -> None:
    served.engine.hold_after = 0
    _, writer = await served.connect()
    body = json.dumps(chat("a")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await served.engine.held.wait()
    assert (await served.get("/health"))[0] == 200
    writer.close()
    await served.engine.idle()


async def test_metrics(served: Served) -> None:
    await served.post(TEXT, {"prompt": "abc", "max_tokens": 3})
    await served.post(TEXT, {"prompt": ""})
    async with served.session.get(served.url + "/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = (await response.text()).splitlines()
    for line in (
        'jaxsgl_num_requests_total{finish="length"} 1.0',
        'jaxsgl_num_requests_total{finish="refused"} 1.0',
        "jaxsgl_time_to_first_token_seconds_count 1.0",
        "jaxsgl_inter_token_latency_seconds_count 2.0",
        "jaxsgl_e2e_request_latency_seconds_count 1.0",
        "jaxsgl_recompiles_total 3.0",
        "jaxsgl_pages_free 6.0",
        "jaxsgl_token_usage 0.19999999999999996",
    ):
        assert line in lines


async def test_one_line_per_request(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server")
    headers = {"X-Request-Id": "my-id"}
    url = yarl.URL(served.url + "/a%0Ab?key=secret", encoded=True)
    async with served.session.get(url, headers=headers) as response:
        assert response.status == 404
    await served.get("/health")
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("GET /a%0Ab 404 ") and line.endswith(" my-id")


async def test_lost_client_is_logged_as_499(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server")
    served.engine.hold_after = 1
    async with served.session.post(served.url + CHAT, json=chat("abc", stream=True)):
        await served.engine.held.wait()
    await served.engine.idle()
    assert [" 499 " in record.getMessage() for record in caplog.records] == [True]


def test_the_front_does_not_load_jax() -> None:
    code = "import server.app, server.site, sys; assert not {'jax', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
