"""Mixed load for a long time: `python -m bench.soak --url URL --pid PID --minutes 20`.

Chats of random lengths and priorities, streamed or not, of which every third client leaves at a
random moment, against a server of this machine. Watches the resident memory of the server's
processes and ends with what it grew by per minute after the first five, and with what the server
still holds once all is over.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

import aiohttp
import psutil

from bench.local_server import read_metrics
from bench.prefix_cache import make_text
from bench.results import write_result

WARM_UP_MINUTES = 5.0
SAMPLE_PERIOD_S = 5.0
END_TIMEOUT_S = 300.0
"""Requests that have no answer so long after the last one was sent are taken for stuck."""
MEAN_REQUEST_LEN = 220
"""Tokens of an average request of `one_request`, prompt and answer; the longest has below 400."""


async def one_request(session: aiohttp.ClientSession, url: str, rng: random.Random) -> str:
    """Send a random request, maybe leave before its end; how it went."""
    body = {
        "model": "default",
        "messages": [
            {"role": "system", "content": make_text(random.Random(rng.randrange(4)), 60)},
            {"role": "user", "content": make_text(rng, rng.randint(3, 200))},
        ],
        "max_tokens": rng.randint(1, 80),
        "temperature": rng.choice([0, 1]),
        "stream": rng.random() < 0.6,
        "priority": rng.randint(0, 3),
    }
    leave_after_s = rng.uniform(0.0, 3.0) if rng.random() < 0.3 else None
    try:
        async with asyncio.timeout(leave_after_s):
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.read()
                return str(response.status)
    except TimeoutError:
        return "left"


async def client(session: aiohttp.ClientSession, url: str, seed: int, until_s: float) -> Counter:
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    while time.monotonic() < until_s:
        outcomes[await one_request(session, url, rng)] += 1
    return outcomes


def resident_mib(pid: int) -> float:
    """Of a process and all its descendants."""
    process = psutil.Process(pid)
    tree = [process, *process.children(recursive=True)]
    return sum(p.memory_info().rss for p in tree) / 2**20


def slope(samples: list[tuple[float, float]]) -> float:
    """Least-squares growth per unit of the first coordinate."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread


@dataclass(frozen=True)
class SoakResult:
    outcomes: dict[str, int]
    """Requests by HTTP status, or "left" where the client went away."""
    metrics: dict[str, float]
    """The server's, once all is over."""
    resident_mib: list[tuple[float, float]]
    """(minutes since the start, resident memory of all processes)"""
    growth: float
    """MiB per minute after the first five, or after half of a shorter run."""

    @property
    def held(self) -> dict[str, float]:
        """What the server still holds or misses, by metric; nothing if all is well."""
        get = self.metrics.__getitem__
        left = {
            name: get(name)
            for name in (
                "num_running_reqs",
                "num_queue_reqs",
                "radix_locks",
                "recompiles_total",
                "cache_rebuilds_total",
            )
        }
        left["slots"] = get("slots_total") - get("slots_free")
        left["pages"] = get("pages_total") - get("pages_free") - get("pages_cached")
        return {name: value for name, value in left.items() if value}


async def soak(url: str, pid: int, minutes: float, num_clients: int) -> SoakResult:
    """Raises TimeoutError if the server leaves requests without an answer."""
    start_s = time.monotonic()
    until_s = start_s + 60 * minutes
    samples: list[tuple[float, float]] = []
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        clients = [
            asyncio.create_task(client(session, url, seed, until_s)) for seed in range(num_clients)
        ]
        while time.monotonic() < until_s:
            await asyncio.sleep(min(SAMPLE_PERIOD_S, 6 * minutes))
            samples.append(((time.monotonic() - start_s) / 60, resident_mib(pid)))
        async with asyncio.timeout(END_TIMEOUT_S):
            outcomes = sum(await asyncio.gather(*clients), Counter())
        metrics = await idle_metrics(session, url)
    late = [sample for sample in samples if sample[0] >= min(WARM_UP_MINUTES, minutes / 2)]
    return SoakResult(dict(sorted(outcomes.items())), metrics, samples, slope(late))


async def idle_metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """The metrics once nothing runs any more, or after END_TIMEOUT_S as they are then."""
    until_s = time.monotonic() + END_TIMEOUT_S
    while True:
        await asyncio.sleep(2.0)  # the next report
        metrics = await read_metrics(session, url)
        busy = metrics["num_running_reqs"] or metrics["num_queue_reqs"] or metrics["radix_locks"]
        if not busy or time.monotonic() > until_s:
            return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--pid", type=int, required=True, help="of the server's front process")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--output")
    args = parser.parse_args()
    result = asyncio.run(soak(args.url, args.pid, args.minutes, args.clients))
    first, last = result.resident_mib[0], result.resident_mib[-1]
    print("outcomes:", result.outcomes)
    print("still held:", result.held or "nothing")
    print(f"retractions: {result.metrics['num_retracted_requests_total']:.0f}")
    print(f"resident: {first[1]:.0f} MiB at first, {last[1]:.0f} MiB after {last[0]:.1f} minutes")
    print(f"growth after warm-up: {result.growth:.2f} MiB per minute")
    summary = {"growth_mib_per_minute": result.growth, "outcomes": result.outcomes}
    samples = [{"minute": minute, "resident_mib": mib} for minute, mib in result.resident_mib]
    write_result(args.output, "soak", vars(args), summary, samples)


if __name__ == "__main__":
    main()
