"""`jaxsgl-bench`: from a command line to a report.

Exit codes: 0 all is well, 1 the server failed a request or answered none, 2 the settings or a file
cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.results import write_result
from bench.serving.arguments import parse, settings
from bench.serving.backends import BACKENDS
from bench.serving.comparison import Result, compare, comparison_lines
from bench.serving.datasets import make_conversations
from bench.serving.plots import plot_run, plot_sweep, save
from bench.serving.progress import Progress
from bench.serving.report import summarize
from bench.serving.runs import Run
from bench.serving.sweep import Point, best_goodput, knee, sweep_lines
from bench.serving.target import Target
from bench.serving.terminal import report_lines

READ_BUFFER_BYTES = 1 << 20


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.compare:
            return _compare(*args.compare)
        return asyncio.run(run(args))
    except (OSError, ValueError) as error:
        print(f"jaxsgl-bench: {error}", file=sys.stderr)
        return 2


async def run(args: argparse.Namespace) -> int:
    """Everything but --compare; the exit code."""
    progress = Progress(sys.stderr, enabled=not args.no_progress)
    async with _session(args) as session:
        if args.sweep is not None:
            return await _sweep(session, args, progress)
        if args.interleave is not None:
            return await _interleave(session, args, progress)
        measured = await measure(session, args, progress)
    return _report(measured, args, args.url, args.output, args.plot)


async def measure(
    session: aiohttp.ClientSession, args: argparse.Namespace, progress: Progress
) -> Run:
    """One run against one server. It is empty if the warm-up failed."""
    target = Target(session, args.url, args)
    conversations = make_conversations(args, args.seed, chat=BACKENDS[args.backend].chat)
    if (failure := await target.prepare()) is not None:
        return Run(warm_up_error=failure)
    return await target.measure(conversations, progress, seed=args.seed)


async def _sweep(
    session: aiohttp.ClientSession, args: argparse.Namespace, progress: Progress
) -> int:
    """Each value has prompts of its own, so that the cache of one does not serve the next."""
    points: list[Point] = []
    failed = False
    for index, value in enumerate(args.sweep.values):
        changed = {args.sweep.destination: value, "seed": args.seed + index}
        progress.label = f"{args.sweep.setting} {value:g}: "
        measured = await measure(session, argparse.Namespace(**{**vars(args), **changed}), progress)
        points.append(Point(value, summarize(measured, args.goodput)))
        failed |= measured.failed
        if measured.interrupted:
            break
    print("\n".join(sweep_lines(args.sweep.setting, points)))
    summary = {
        "knee": knee(points),
        "best_goodput": best_goodput(points),
        "points": [dataclasses.asdict(point) for point in points],
    }
    write_result(args.output, "serving-sweep", settings(args), summary)
    if args.plot is not None:
        save(plot_sweep(args.sweep.setting, points, _title(args, args.url)), args.plot)
    return 1 if failed else 0


async def _interleave(
    session: aiohttp.ClientSession, args: argparse.Namespace, progress: Progress
) -> int:
    """Rounds of both servers in turn, the one that goes first changing each time, so that what
    drifts on the machine meets both alike."""
    urls = (args.url, args.interleave)
    duration_s = args.duration and args.duration / args.rounds
    of_a_round = argparse.Namespace(**{**vars(args), "duration": duration_s})
    targets = [Target(session, url, of_a_round) for url in urls]
    runs = [Run(warm_up_error=await target.prepare()) for target in targets]
    conversations = make_conversations(args, args.seed, chat=BACKENDS[args.backend].chat)
    if all(run.warm_up_error is None for run in runs):
        for number in range(args.rounds):
            begin = len(conversations) * number // args.rounds
            part = conversations[begin : len(conversations) * (number + 1) // args.rounds]
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                progress.label = f"round {number + 1} of {args.rounds}, {urls[which]}: "
                measured = await targets[which].measure(part, progress, seed=args.seed + number)
                for record in measured.records:
                    record.conversation += begin
                runs[which].add(measured)
    paths = [args.output, _second(args.output)], [args.plot, _second(args.plot)]
    codes = [
        _report(runs[which], args, urls[which], paths[0][which], paths[1][which])
        for which in (0, 1)
    ]
    first, second = (Result(settings(args), run.records, run.elapsed_s) for run in runs)
    print("\n".join(comparison_lines(compare(first, second))))
    return max(codes)


def _second(path: str | None) -> str | None:
    """Where the second server's part goes: result.json, result.second.json."""
    if path is None:
        return None
    first = Path(path)
    return str(first.with_suffix(f".second{first.suffix}"))


def _report(
    run: Run, args: argparse.Namespace, url: str, output: str | None, plot: str | None
) -> int:
    summary = summarize(run, args.goodput)
    print(f"{url} ({args.backend}, {args.dataset})", *report_lines(summary), "", sep="\n")
    write_result(
        output,
        "serving",
        settings(args) | {"url": url},
        summary,
        [_rounded(vars(record)) for record in run.records],
        [dataclasses.asdict(sample) for sample in run.samples],
    )
    if plot is not None:
        save(plot_run(run, _title(args, url)), plot)
    return 1 if run.failed else 0


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Times to the microsecond."""
    return {
        name: round(value, 6)
        if isinstance(value, float)
        else [round(moment_s, 6) for moment_s in value]
        if isinstance(value, list)
        else value
        for name, value in record.items()
    }


def _compare(first: str, second: str) -> int:
    ratios = compare(Result.read(first), Result.read(second))
    print(f"first: {first}", f"second: {second}", *comparison_lines(ratios), sep="\n")
    return 0


def _title(args: argparse.Namespace, url: str) -> str:
    if args.sweep is not None:
        load = f"sweep of {args.sweep.setting}"
    elif args.request_rate is not None:
        load = f"{args.request_rate:g} requests/s"
    else:
        load = f"{args.max_concurrency} at a time"
    return f"{url}: {args.dataset}, {load}, {args.input_len} + {args.output_len} tokens"


@asynccontextmanager
async def _session(args: argparse.Namespace) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        headers=dict(args.header),
        read_bufsize=READ_BUFFER_BYTES,
    ) as session:
        yield session
