"""The report as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "n/a"
_LATENCIES = (
    ("time to first token", "ttft_s"),
    ("inter-token", "inter_token_s"),
    ("time per output token", "time_per_output_token_s"),
    ("end to end", "e2e_s"),
    ("client late in sending", "send_lag_s"),
)


def report_lines(summary: Mapping[str, Any]) -> list[str]:
    """The table of one run, from `report.summarize`."""
    get = summary.__getitem__
    counts = f"{get('requests')} due, {get('complete')} complete, {get('errors')} failed"
    drain = f"{get('sending_s'):.1f} s sending, {get('drain_s'):.1f} s draining"
    rows = [
        ("requests", f"{counts}, {get('unfinished')} cut off by the client"),
        ("time", f"{get('elapsed_s'):.1f} s: {drain}"),
        ("in the drain", f"{get('open_when_sending_ended')} requests were still open"),
        ("requests/s", number(get("requests_per_s"))),
        ("input tokens/s", number(get("input_tokens_per_s"))),
        ("output tokens/s", number(get("output_tokens_per_s"))),
        ("cache hit rate", f"{percent(get('cache_hit_rate'))} (server's counters)"),
        ("cached prompt tokens", f"{percent(get('cached_share'))} (usage of the answers)"),
        ("recompiles", number(get("recompiles"))),
        ("retractions", number(get("retractions"))),
        ("running requests", pairs(get("running_requests"))),
        ("waiting requests", pairs(get("waiting_requests"))),
        ("device utilisation", percent(get("device_utilisation"))),
        ("device memory", gibibytes(get("device_memory_bytes"))),
    ]
    if goodput := get("goodput"):
        share = percent(goodput["share"])
        rows.append(("goodput", f"{number(goodput['requests_per_s'])} requests/s, {share} of all"))
    if kinds := get("errors_by_kind"):
        rows.append(("errors", pairs(kinds)))
    if get("interrupted"):
        rows.append(("interrupted", "yes"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows] + ["", *_latency_lines(summary)]


def _latency_lines(summary: Mapping[str, Any]) -> list[str]:
    columns = ("mean", "p50", "p90", "p99")
    table = [
        [name, *(milliseconds(summary[key].get(column)) for column in columns)]
        for name, key in _LATENCIES
    ]
    own = (summary["server_mean_ttft_s"], summary["server_mean_inter_token_s"])
    table.append(["first token, server's own", milliseconds(own[0]), "", "", ""])
    table.append(["inter-token, server's own", milliseconds(own[1]), "", "", ""])
    return aligned([["latency in ms", *columns], *table])


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def number(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"


def milliseconds(value_s: float | None) -> str:
    return ABSENT if value_s is None else f"{1000 * value_s:,.2f}"


def gibibytes(value: float | None) -> str:
    return ABSENT if value is None else f"{value / 2**30:.2f} GiB"


def pairs(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items()) or ABSENT
