"""What cache, chunks and overlap are worth to chats: `python -m bench.chat_latency`.

Runs the same chats, all at once, against a server with everything on and against one with cache,
chunked prefill and overlap off, one after the other, and reports how much lower the latency of a
turn is, and how many fewer pages the requests held at their peak. What is behind `--` goes to both
servers. Their context is just long enough: without chunks, steps have room for all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

from bench.local_server import local_server, read_metrics
from bench.prefix_cache import ChatShape, cached_share, run_chats
from bench.results import show, spread, write_result

SIDES = {
    "everything_on": (),
    "all_off": ("--disable-radix-cache", "--disable-chunked-prefill", "--disable-overlap"),
}
REPORT_PERIOD_S = 1.5
"""By then the server has reported what it held."""


async def measure(num_chats: int, shape: ChatShape, flags: Sequence[str]) -> dict[str, Any]:
    """Start a server, run the chats against it, and end it."""
    begin_s = time.perf_counter()
    async with local_server(*flags) as url, aiohttp.ClientSession() as session:
        start_s = time.perf_counter() - begin_s
        # One turn of another chat, so that no measured request is the server's first.
        await run_chats(url, 1, dataclasses.replace(shape, turns=1, system_len=3), first_seed=-1)
        before = await _settled_metrics(session, url)
        chats = await run_chats(url, num_chats, shape)
        after = await _settled_metrics(session, url)
    turns = [turn for chat in chats for turn in chat]
    return {
        "start_s": start_s,
        "turn_latency_s": spread([turn.latency_s for turn in turns]),
        "pages_held_peak": after["pages_held_peak"],
        "cached_share": cached_share(turns),
        "longest_sequence": max(turn.prompt_tokens for turn in turns) + shape.answer_len,
        "retractions": _change(before, after, "num_retracted_requests_total"),
        "recompiles": _change(before, after, "recompiles_total"),
    }


async def _settled_metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    await asyncio.sleep(REPORT_PERIOD_S)
    return await read_metrics(session, url)


def _change(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before[name]


def reductions(everything_on: dict[str, Any], all_off: dict[str, Any]) -> dict[str, float]:
    """By how many percent each figure is lower with everything on."""

    def percent(on: float, off: float) -> float:
        return 100 * (1 - on / off)

    latencies = (everything_on["turn_latency_s"], all_off["turn_latency_s"])
    return {
        f"{name}_latency_reduction_percent": percent(latencies[0][name], latencies[1][name])
        for name in ("p50", "p99")
    } | {
        "peak_pages_reduction_percent": percent(
            everything_on["pages_held_peak"], all_off["pages_held_peak"]
        )
    }


async def run(num_chats: int, shape: ChatShape, flags: Sequence[str]) -> dict[str, Any]:
    """Both sides, each printed as soon as it is measured."""
    summary: dict[str, Any] = {}
    for name, own in SIDES.items():
        summary[name] = await measure(num_chats, shape, [*flags, *own])
        print(name.replace("_", " "))
        show({f"  {key}": value for key, value in summary[name].items()})
    return summary | reductions(**summary)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--system-len", type=int, default=700)
    parser.add_argument("--question-len", type=int, default=137)
    parser.add_argument("--answer-len", type=int, default=120)
    parser.add_argument("--context-len", type=int, default=2304)
    parser.add_argument("--output")
    own, flags = argv, []
    if "--" in argv:
        own, flags = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    args = parser.parse_args(own)
    shape = ChatShape(args.turns, args.system_len, args.question_len, args.answer_len)
    flags = ["--context-length", str(args.context_len), *flags]
    summary = asyncio.run(run(args.chats, shape, flags))
    show({key: value for key, value in summary.items() if key.endswith("_percent")})
    write_result(args.output, "chat_latency", vars(args) | {"flags": flags}, summary)


if __name__ == "__main__":
    main(sys.argv[1:])
