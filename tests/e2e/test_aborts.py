"""Clients that go away at random moments."""

import asyncio
import random
from typing import Any

from tests.e2e.http_client import HttpClient, is_idle

NUM_REQUESTS = 200
LATEST_ABORT_S = 8.0


async def test_200_aborts_leave_nothing(client: HttpClient):
    """Half of them stream, and a third of those hang up after some event, not after some time; the
    moments cover waiting, prompts in several chunks, and decoding."""
    before = await client.metrics_when(is_idle)
    rng = random.Random(0)
    fates = await asyncio.gather(*(_abandon(client, rng, n) for n in range(NUM_REQUESTS)))
    assert fates.count("abandoned") > 0.8 * NUM_REQUESTS
    after = await client.metrics_when(is_idle)
    num_aborted, num_tokens = (
        after[name] - before[name]
        for name in ("jaxsgl_num_aborted_requests_total", "jaxsgl_generation_tokens_total")
    )
    assert num_aborted > NUM_REQUESTS / 2 and num_tokens > 0
    assert "Paris" in await client.capital()


async def _abandon(client: HttpClient, rng: random.Random, n: int) -> str:
    """Ask, and go away before the answer is complete. Draws from `rng` before the first await, so
    that every run asks the same."""
    body: dict[str, Any] = {
        # Some prompts begin alike, some take several steps.
        "prompt": [100 + n % 5] * rng.choice((3, 20, 40)) + [1000 + n] * rng.choice((5, 30, 300)),
        "max_tokens": rng.choice((20, 200)),
        "temperature": rng.choice((0, 1)),
        "ignore_eos": True,
    }
    delay_s = rng.random() * LATEST_ABORT_S
    num_events = rng.randrange(1, 15)
    match n % 6:
        case 0:
            asking = client.read_events("/v1/completions", body, num_events)
            delay_s = LATEST_ABORT_S
        case 1 | 2:
            asking = client.read_events("/v1/completions", body, 10_000)
        case _:
            asking = client.post("/v1/completions", body)
    try:
        async with asyncio.timeout(delay_s):
            num_read = await asking
    except TimeoutError:
        return "abandoned"
    return "abandoned" if num_read == num_events else "answered"
