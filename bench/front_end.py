"""What the front alone can deliver: `python -m bench.front_end`.

Many streams against a replica that steps by the clock, all of them at once: the real server, pool
and link, a replica process without a model, and the client in this process, all on one machine.
A front that keeps up delivers one event per token; one that lags puts several tokens into one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import psutil

from bench.clocked_front import start_front
from bench.results import show, write_result

# The client.


@dataclass
class Counts:
    num_events: int = 0
    num_bytes: int = 0
    first_s: float = 0.0
    last_s: float = 0.0


class Stream(asyncio.Protocol):
    """Sends one request and counts the events that come back, as cheaply as Python can."""

    MARK = b'"text":" a'

    def __init__(self, request: bytes, counts: Counts) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._counts = counts
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        counts = self._counts
        seen = self._tail + data
        num_events = seen.count(self.MARK)
        self._tail = seen[-(len(self.MARK) - 1) :]  # a mark may lie across two reads
        if num_events:
            counts.last_s = time.perf_counter()
            counts.first_s = counts.first_s or counts.last_s
        counts.num_events += num_events
        counts.num_bytes += len(data)
        if b"[DONE]" in seen:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def http_request(port: int, num_tokens: int) -> bytes:
    body = json.dumps(
        {"model": "default", "prompt": [1], "max_tokens": num_tokens, "stream": True}
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def load(port: int, num_streams: int, num_tokens: int) -> Counts:
    counts = Counts()
    request = http_request(port, num_tokens)
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Stream(request, counts), "127.0.0.1", port)
        for _ in range(num_streams)
    ]
    await asyncio.gather(*(stream.done for _, stream in opened))
    for transport, _ in opened:
        transport.close()
    return counts


async def run(num_streams: int, num_tokens: int, step_ms: float) -> dict[str, Any]:
    async with start_front(step_ms) as front:
        process = psutil.Process(front.process_id)
        await load(front.port, num_streams, 10)  # warm
        before = process.cpu_times()
        counts = await load(front.port, num_streams, num_tokens)
        after = process.cpu_times()
    elapsed_s = counts.last_s - counts.first_s
    cpu_s = after.user + after.system - before.user - before.system
    total = num_streams * num_tokens
    return {
        "tokens_per_s": total / elapsed_s,
        "events_per_s": counts.num_events / elapsed_s,
        "tokens_per_event": total / counts.num_events,
        "offered_tokens_per_s": num_streams / step_ms * 1000,
        "elapsed_s": elapsed_s,
        "front_cpu_us_per_event": cpu_s / counts.num_events * 1e6,
        "bytes_per_event": counts.num_bytes / counts.num_events,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1000, help="per stream")
    parser.add_argument("--step-ms", type=float, default=10, help="the replica's clock")
    parser.add_argument("--output", help="file for the result, as JSON")
    args = parser.parse_args(argv)
    summary = asyncio.run(run(args.streams, args.tokens, args.step_ms))
    show(summary)
    write_result(args.output, "front_end", vars(args), summary)


if __name__ == "__main__":
    main()
