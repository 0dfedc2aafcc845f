"""What the load generator itself costs and gets wrong: `python -m bench.generator`.

Sends streamed requests at a fixed mean rate to a server that answers at once and notes what it
does (`instant_server.py`), with the generator on one core and the server on another, and sets what
the generator noted beside what the server did. Both read the machine's monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.results import show, spread, write_result
from bench.serving.arguments import parse as parse_serving
from bench.serving.command import measure
from bench.serving.progress import Progress
from bench.serving.runs import Run


@asynccontextmanager
async def instant_server(log: Path) -> AsyncIterator[str]:
    """The URL of one, which writes its log when it ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.instant_server", "--port", "0", "--log", str(log)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().removeprefix("ready at ").strip()
    finally:
        process.send_signal(2)
        await process.wait()


def compare_with_log(run: Run, log: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How far the moments of the generator are behind those of the server, in seconds.

    `sent_before_s` is what lies between sending and the server's handler. `seen_after_s` and
    `first_seen_after_s` are between an event's way into the server's socket and its note here;
    `ttft_s` and `e2e_s` are differences of durations, which is what a report would be wrong by.
    """
    sent: list[float] = []
    seen: list[float] = []
    first: list[float] = []
    e2e: list[float] = []
    for record in run.records:
        served = log.get(record.id)
        if not record.ok or served is None or record.sent_s is None:
            continue
        moments = [moment_s + run.start_s for moment_s in record.event_s]
        late = [a - b for a, b in zip(moments, served["event_s"], strict=True)]
        before = served["received_s"] - (record.sent_s + run.start_s)
        sent.append(before)
        seen += late
        first.append(before + late[0])
        e2e.append(before + late[-1])
    figures = {"sent_before_s": sent, "seen_after_s": seen, "ttft_s": first, "e2e_s": e2e}
    return {name: spread(values) for name, values in figures.items()}


async def run(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[-1]})
        async with instant_server(log) as url, aiohttp.ClientSession() as session:
            os.sched_setaffinity(0, {cores[0]})
            load = parse_serving(
                [
                    *("--url", url, "--request-rate", str(args.request_rate), "--settle", "0"),
                    *("--num-prompts", str(args.num_prompts), "--output-len", str(args.output_len)),
                ]
            )
            begin_s = time.process_time()
            measured = await measure(session, load, Progress(sys.stderr))
            cpu_s = time.process_time() - begin_s
        served = {(line := json.loads(each))["id"]: line for each in log.read_text().splitlines()}
    done = sum(record.ok for record in measured.records)
    return {
        "requests": len(measured.records),
        "errors": len(measured.records) - done,
        "requests_per_minute": 60 * done / measured.elapsed_s,
        "generator_cpu_share": cpu_s / measured.elapsed_s,
        "send_lag_s": spread([r.send_lag_s for r in measured.records if r.send_lag_s is not None]),
        **compare_with_log(measured, served),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--request-rate", type=float, default=5000 / 60)
    parser.add_argument("--num-prompts", type=int, default=1250)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--output")
    args = parser.parse_args(argv)
    summary = asyncio.run(run(args))
    show(summary)
    write_result(args.output, "generator", vars(args), summary)
    return 1 if summary["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
