"""Far more requests at once than a server takes: `python -m bench.overload`.

The real front, pool and link in a process of their own, over a replica without a model that steps
by the clock (`clocked_replica.py`); the clients in this process, on the same machine. Every client
has a connection of its own, all are open before the first request is sent, and then all are sent.
Times on the server's side come from its log: from the whole request head to the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from bench.clocked_front import Front, start_front
from bench.front_end import http_request
from bench.results import show, write_result

OPENING_AT_ONCE = 200
HEALTH_PERIOD_S = 0.05


@dataclass
class Seen:
    statuses: Counter[str] = field(default_factory=Counter[str])
    answered_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """By status, from when all were sent to the first byte of the answer."""
    without_retry_after: int = 0
    unfinished: int = 0


class Client(asyncio.Protocol):
    """One request, read to its end."""

    def __init__(self, seen: Seen) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seen = seen
        self._data = b""
        self._sent_s = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, begin_s: float) -> None:
        """What its answer takes is counted from `begin_s`."""
        assert self._transport is not None
        self._sent_s = begin_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        first, self._data = not self._data, self._data + data
        if first:
            status = data[9:12].decode(errors="replace")
            self._seen.statuses[status] += 1
            elapsed_s = time.perf_counter() - self._sent_s
            self._seen.answered_s.setdefault(status, []).append(elapsed_s)
            if status == "429" and b"retry-after:" not in data.lower():
                self._seen.without_retry_after += 1
        if self._data.endswith((b"[DONE]\n\n\r\n0\r\n\r\n", b"}}")):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._seen.unfinished += 1
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def probe(port: int) -> None:
    """Ask for /health again and again until standard input ends, on new connections and on one that
    is kept, then print how long that took, in ms. In a process of its own, so that what the clients
    do does not hold it up. It says a line when it has begun."""
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    fresh_ms: list[float] = []
    kept_ms: list[float] = []
    lag_ms: list[float] = []

    async def ask_on_new_ones() -> None:
        while not ending.done():
            begin_s = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await _ask(reader, writer)
            fresh_ms.append((time.perf_counter() - begin_s) * 1e3)
            writer.close()
            await asyncio.sleep(HEALTH_PERIOD_S)

    async def ask_on_one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not ending.done():
            begin_s = time.perf_counter()
            await _ask(reader, writer)
            answered_s = time.perf_counter()
            kept_ms.append((answered_s - begin_s) * 1e3)
            await asyncio.sleep(HEALTH_PERIOD_S)
            lag_ms.append((time.perf_counter() - answered_s - HEALTH_PERIOD_S) * 1e3)
        writer.close()

    async def tell_that_it_has_begun() -> None:
        while not (fresh_ms and lag_ms):  # noqa: ASYNC110 - once, and soon
            await asyncio.sleep(HEALTH_PERIOD_S)
        print("begun", flush=True)

    await asyncio.gather(ask_on_new_ones(), ask_on_one(), tell_that_it_has_begun())
    print(
        json.dumps(
            {
                "health_ms_max": max(fresh_ms),
                "health_ms_p50": statistics.median(fresh_ms),
                "health_kept_ms_max": max(kept_ms),
                "health_kept_ms_p50": statistics.median(kept_ms),
                "num_health": len(fresh_ms) + len(kept_ms),
                "prober_lag_ms_max": max(lag_ms),
            }
        )
    )


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"}")
    if not head.startswith(b"HTTP/1.1 200"):
        raise AssertionError(f"/health said {head!r}")


@contextlib.asynccontextmanager
async def watched(front: Front) -> AsyncIterator[dict[str, float]]:
    """The worst of /health and of the front's memory meanwhile, complete at the end."""
    worst = {"rss_mib_peak": 0.0}
    process = psutil.Process(front.process_id)
    prober = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.overload", "--probe", str(front.port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )

    async def watch() -> None:
        while True:
            rss_mib = process.memory_info().rss / 2**20
            worst["rss_mib_peak"] = max(worst["rss_mib_peak"], rss_mib)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        assert prober.stdout is not None
        await prober.stdout.readline()  # from here on it asks
        before = process.cpu_times()
        yield worst
        after = process.cpu_times()
        worst["front_cpu_s"] = after.user + after.system - before.user - before.system
    finally:
        watching.cancel()
        said, _ = await prober.communicate()
    worst |= json.loads(said)


async def storm(
    port: int, num_requests: int, num_tokens: int, *, connect_first: bool = True
) -> Seen:
    """Send all requests at once and wait for all answers: on connections that are open before the
    first is sent, or else all connect at once too, and each sends as soon as it can."""
    seen = Seen()
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(OPENING_AT_ONCE if connect_first else num_requests)
    request = http_request(port, num_tokens)
    begin_s = time.perf_counter()

    async def open_one() -> Client:
        async with gate:
            client = (await loop.create_connection(lambda: Client(seen), "127.0.0.1", port))[1]
            if not connect_first:
                client.send(request, begin_s)
            return client

    clients = await asyncio.gather(*(open_one() for _ in range(num_requests)))
    if connect_first:
        for client in clients:
            client.send(request, time.perf_counter())
    await asyncio.wait([client.done for client in clients], timeout=120)
    seen.unfinished += sum(not client.done.done() for client in clients)
    for client in clients:
        client.close()
    return seen


def server_times(log: Path) -> dict[str, list[float]]:
    """Seconds from request head to answer, by status, of every completion in the server's log."""
    times: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["message"] == "answered" and entry["path"] == "/v1/completions":
            times.setdefault(str(entry["status"]), []).append(entry["seconds"])
    return times


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else max(values, default=0)


async def run(
    num_requests: int,
    queue: int,
    slots: int,
    num_tokens: int,
    step_ms: float,
    *,
    connect_first: bool = True,
) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        async with start_front(step_ms, slots=slots, queue=queue, log=log) as front:
            await storm(front.port, 20, 5)  # warm
            rss_mib = psutil.Process(front.process_id).memory_info().rss / 2**20
            log.write_text("")
            async with watched(front) as worst:
                seen = await storm(
                    front.port, num_requests, num_tokens, connect_first=connect_first
                )
        times = server_times(log)
    return {
        "statuses": dict(seen.statuses),
        "unfinished": seen.unfinished,
        "refused_without_retry_after": seen.without_retry_after,
        "server_refusal_ms_p99": _p99(times.get("429", [])) * 1e3,
        "last_refusal_s": max(seen.answered_s.get("429", [0.0])),
        "last_first_byte_s": max((max(values) for values in seen.answered_s.values()), default=0.0),
        "rss_mib_before": rss_mib,
        **worst,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--queue", type=int, default=1024, help="--max-queued-requests")
    parser.add_argument("--slots", type=int, default=128, help="requests that run at once")
    parser.add_argument("--tokens", type=int, default=80, help="of each answer")
    parser.add_argument("--step-ms", type=float, default=10, help="the replica's clock")
    parser.add_argument(
        "--connect-at-once",
        action="store_true",
        help="the clients connect at once too, instead of one after the other beforehand",
    )
    parser.add_argument("--output", help="file for the result, as JSON")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.probe is not None:
        asyncio.run(probe(args.probe))
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    summary = asyncio.run(
        run(
            args.requests,
            args.queue,
            args.slots,
            args.tokens,
            args.step_ms,
            connect_first=not args.connect_at_once,
        )
    )
    show(summary)
    write_result(args.output, "overload", vars(args), summary)


if __name__ == "__main__":
    main()
