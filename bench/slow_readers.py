"""What readers that do not keep up cost the others: `python -m bench.slow_readers`.

32 streams of a front over a replica that steps by the clock (`clocked_front.py`), first all of them
read as they should, then some take one byte a second and some nothing at all. The others'
inter-token latency is compared, and the server is asked how many streams it cut off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import socket
import statistics
import time
from typing import Any

import aiohttp

from bench.clocked_front import start_front
from bench.front_end import http_request
from bench.results import show, write_result

RECEIVE_BUFFER_BYTES = 4096
_MARK = b'"text":" a'


class Reader(asyncio.Protocol):
    """Reads one stream and notes when events came."""

    def __init__(self, request: bytes) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gaps_s: list[float] = []
        self._request = request
        self._tail = b""
        self._last_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        seen = self._tail + data
        num_events = seen.count(_MARK)
        self._tail = seen[-(len(_MARK) - 1) :]  # a mark may lie across two reads
        if num_events:
            if self._last_s:
                # Events that come together come late, but for the last.
                self.gaps_s += [now_s - self._last_s, *[0.0] * (num_events - 1)]
            self._last_s = now_s
        if b"[DONE]" in seen and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("a stream was cut off"))


async def dawdle(port: int, request: bytes, bytes_per_s: int) -> None:
    """Ask, and take that much of the answer, until the server has had enough or for ever."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, request)
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(1)
                if bytes_per_s:
                    await loop.sock_recv(sock, bytes_per_s)


async def num_cut_off(port: int) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as response,
    ):
        found = re.search(r'finish="disconnected"\} (\S+)', await response.text())
    return int(float(found[1])) if found else 0


async def one_run(
    port: int, num_streams: int, num_slow: int, num_never: int, num_tokens: int
) -> tuple[float, int]:
    """The 99th percentile of the good readers' gaps in seconds, and how many streams were cut."""
    request = http_request(port, num_tokens)
    before = await num_cut_off(port)
    bad = [asyncio.create_task(dawdle(port, request, 1)) for _ in range(num_slow)]
    bad += [asyncio.create_task(dawdle(port, request, 0)) for _ in range(num_never)]
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Reader(request), "127.0.0.1", port)
        for _ in range(num_streams - num_slow - num_never)
    ]
    await asyncio.gather(*(reader.done for _, reader in opened))
    for transport, _ in opened:
        transport.close()
    num_cut = await num_cut_off(port) - before
    for task in bad:
        task.cancel()
    await asyncio.gather(*bad, return_exceptions=True)
    gaps_s = [gap_s for _, reader in opened for gap_s in reader.gaps_s]
    return statistics.quantiles(gaps_s, n=100)[98], num_cut


async def run(
    num_streams: int, num_slow: int, num_never: int, num_tokens: int, step_ms: float, num_runs: int
) -> dict[str, Any]:
    alone: list[float] = []
    among: list[float] = []
    cut: list[int] = []
    async with start_front(step_ms, write_timeout_s=2.0) as front:
        await one_run(front.port, num_streams, 0, 0, 50)  # warm
        for _ in range(num_runs):  # in turns: what else the machine does hits both
            alone.append((await one_run(front.port, num_streams, 0, 0, num_tokens))[0])
            p99_s, num_cut = await one_run(front.port, num_streams, num_slow, num_never, num_tokens)
            among.append(p99_s)
            cut.append(num_cut)
    return {
        "inter_token_ms_p99": statistics.median(alone) * 1e3,
        "inter_token_ms_p99_among_them": statistics.median(among) * 1e3,
        "ratio": statistics.median(among) / statistics.median(alone),
        "cut_off_per_run": cut,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--slow", type=int, default=2, help="of them, readers of 1 byte a second")
    parser.add_argument("--never", type=int, default=2, help="of them, readers of nothing")
    parser.add_argument("--tokens", type=int, default=1500, help="per stream")
    parser.add_argument("--step-ms", type=float, default=10, help="the replica's clock")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", help="file for the result, as JSON")
    args = parser.parse_args(argv)
    summary = asyncio.run(
        run(args.streams, args.slow, args.never, args.tokens, args.step_ms, args.runs)
    )
    show(summary)
    write_result(args.output, "slow_readers", vars(args), summary)


if __name__ == "__main__":
    main()
