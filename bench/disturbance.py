"""What streams notice of something large that happens beside them, on a running server:

    python -m bench.disturbance --url URL prompt 32000
    python -m bench.disturbance --url URL --output-len 7000 reshard tp=1 tp=2

Streams of random token ids begin together. Once all of them have tokens, a long prompt is sent, or
the model is moved from mesh to mesh, one after the other. Reported are the gaps between the tokens
of a stream before it, and while it lasts (until the streams have gone on for a while after a move).
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp

from bench.prompts import random_prompts
from bench.results import show, spread, write_result
from bench.serving.backends import BACKENDS
from bench.serving.client import Client, Clock
from bench.serving.records import Record

POLL_S = 0.02
QUIET_S = 3.0
"""Of tokens before the disturbance are looked at."""
AFTER_S = 2.0
"""A move is over for streams when they have gone on for so long."""
TIMEOUT_S = 3600.0
SERVER = BACKENDS["jaxsgl"]


@dataclass(frozen=True)
class Streams:
    """How many answers of what length to prompts of what length."""

    count: int
    input_len: int
    output_len: int


class Disturbance:
    """Streams of one server, and what befalls them."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, vocab_size: int, seed: int
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._client = Client(session, url, SERVER, TIMEOUT_S)
        self._clock = Clock()
        self._vocab_size = vocab_size
        self._rng = random.Random(seed)
        self._sent: list[Record] = []
        self._tasks: list[asyncio.Task[str]] = []

    async def begin(self, streams: Streams) -> None:
        """Return when each has decoded for a while."""
        for _ in range(streams.count):
            self._send(streams.input_len, streams.output_len)
        while not all(len(record.event_s) > 1 for record in self._sent):
            if any(record.error is not None for record in self._sent):
                raise RuntimeError(next(r.detail for r in self._sent if r.error is not None))
            if any(record.end_s is not None for record in self._sent):
                raise RuntimeError("an answer ended before all had begun; ask for longer ones")
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(QUIET_S)

    def _send(self, input_len: int, output_len: int) -> Record:
        (prompt,) = random_prompts(self._rng, 1, input_len, self._vocab_size)
        record = Record(len(self._sent), 0, self._clock.now_s())
        body = {
            "model": "default",
            "prompt": prompt,
            "max_tokens": output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._sent.append(record)
        self._tasks.append(asyncio.create_task(self._client.send(body, record, self._clock)))
        return record

    async def prompt(self, length: int) -> dict[str, Any]:
        """A long prompt, and one token after it."""
        streams = list(self._sent)
        begin_s = self._clock.now_s()
        record = self._send(length, 1)
        await self._tasks[-1]
        if record.error is not None:
            raise RuntimeError(record.detail)
        end_s = self._clock.now_s()
        await self._all_go_on(streams, end_s)
        return {
            "first_token_s": end_s - begin_s,
            "gap_ms_before": _gaps_ms(streams, begin_s - QUIET_S, begin_s),
            "gap_ms_meanwhile": _gaps_ms(streams, begin_s, end_s),
        }

    async def _all_go_on(self, streams: Sequence[Record], after_s: float) -> None:
        while True:
            if all(_goes_on(record, after_s) for record in streams):
                return
            await asyncio.sleep(POLL_S)

    async def reshard(self, mesh: str) -> dict[str, Any]:
        """A move to another mesh."""
        begin_s = self._clock.now_s()
        async with self._session.post(f"{self._url}/reshard", json={"mesh": mesh}) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {answer}")
        end_s = self._clock.now_s()
        await self._all_go_on(self._sent, end_s)
        await asyncio.sleep(AFTER_S)
        return {
            "call_s": end_s - begin_s,
            "paused_s": answer.get("paused_s"),
            "compiled_s": answer.get("compiled_s"),
            "longest_gap_s": _gaps_ms(self._sent, begin_s, self._clock.now_s())["max"] / 1e3,
        }

    async def end(self, streams: Streams) -> dict[str, int]:
        """Wait for all answers; how many are lost or too short."""
        await asyncio.gather(*self._tasks)
        answers = self._sent[: streams.count]
        return {
            "lost": sum(record.error is not None for record in answers),
            "short": sum(record.output_len != streams.output_len for record in answers),
        }


def _goes_on(record: Record, after_s: float) -> bool:
    return record.end_s is not None or (bool(record.event_s) and record.event_s[-1] > after_s)


def _gaps_ms(records: Sequence[Record], begin_s: float, end_s: float) -> dict[str, float]:
    """Of gaps that lie within that time, if only in part."""
    gaps = [
        1e3 * (second_s - first_s)
        for record in records
        for first_s, second_s in pairwise(record.event_s)
        if begin_s <= second_s and first_s <= end_s
    ]
    return {**spread(gaps), "max": max(gaps, default=0.0)}


async def run(
    url: str, streams: Streams, what: str, values: Sequence[str], *, vocab_size: int, seed: int
) -> dict[str, Any]:
    """`what` is "prompt", with lengths, or "reshard", with meshes."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        disturbance = Disturbance(session, url, vocab_size, seed)
        await disturbance.begin(streams)
        summary: dict[str, Any] = {}
        for index, value in enumerate(values, start=1):
            happen = (
                disturbance.prompt(int(value)) if what == "prompt" else disturbance.reshard(value)
            )
            seen = await happen
            summary |= {f"{index}_{what}_{value}_{name}": each for name, each in seen.items()}
        return summary | await disturbance.end(streams)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--output-len", type=int, default=900, help="enough to last")
    parser.add_argument("--vocab-size", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="file for the result, as JSON")
    parser.add_argument("what", choices=("prompt", "reshard"))
    parser.add_argument("values", nargs="+", help="lengths of prompts, or meshes")
    args = parser.parse_args(argv)
    streams = Streams(args.streams, args.input_len, args.output_len)
    summary = asyncio.run(
        run(
            args.url,
            streams,
            args.what,
            args.values,
            vocab_size=args.vocab_size,
            seed=args.seed,
        )
    )
    show(summary)
    write_result(args.output, "disturbance", vars(args), summary)


if __name__ == "__main__":
    main()
