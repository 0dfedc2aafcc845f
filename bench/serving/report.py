"""The figures of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.results import spread
from bench.serving.records import UNFINISHED, Record
from bench.serving.runs import Run
from bench.serving.server_watch import Sample

LATENCIES: Mapping[str, Callable[[Record], float | None]] = {
    "ttft": lambda record: record.ttft_s,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.e2e_s,
}
"""What a goodput bound may be set on."""


def parse_goodput(bounds: Sequence[str]) -> dict[str, float]:
    """From "ttft:200" (milliseconds) to seconds by name; ValueError for anything else."""
    parsed: dict[str, float] = {}
    for bound in bounds:
        name, _, value = bound.partition(":")
        if name not in LATENCIES:
            raise ValueError(f"a bound is on one of {', '.join(LATENCIES)}, not on {name!r}")
        parsed[name] = float(value) / 1000
    return parsed


def summarize(run: Run, goodput: Mapping[str, float]) -> dict[str, Any]:
    """Figures by name: seconds, shares of 1, and rates per second of the whole run, drain
    included. Rates and latencies are of complete answers only. None and {} are what nobody told.
    """
    good = [record for record in run.records if record.ok]
    return {
        "requests": len(run.records),
        "complete": len(good),
        "errors": sum(record.failed for record in run.records),
        "errors_by_kind": error_kinds(run),
        "unfinished": sum(record.error == UNFINISHED for record in run.records),
        "interrupted": run.interrupted,
        "elapsed_s": run.elapsed_s,
        "sending_s": run.sending_s,
        "drain_s": max(0.0, run.elapsed_s - run.sending_s),
        "open_when_sending_ended": run.num_open_at_end,
        "requests_per_s": _rate(len(good), run),
        "input_tokens_per_s": _rate(sum(record.input_len for record in good), run),
        "output_tokens_per_s": _rate(sum(record.output_len for record in good), run),
        **_latencies(good, run.records),
        "goodput": _goodput(run, goodput),
        "cached_share": _ratio(
            sum(record.cached_len for record in good), sum(record.input_len for record in good)
        ),
        **_server_figures(run),
        **_device_figures(run.samples),
    }


def error_kinds(run: Run) -> dict[str, int]:
    kinds = Counter(record.error for record in run.records if record.failed and record.error)
    if run.warm_up_error is not None:
        kinds[f"warm_up_{run.warm_up_error}"] += 1
    return dict(sorted(kinds.items()))


def meets(record: Record, goodput: Mapping[str, float]) -> bool:
    """Whether it was answered within every bound. What it has no figure for bounds nothing."""
    return record.ok and all(
        (LATENCIES[name](record) or 0.0) <= bound_s for name, bound_s in goodput.items()
    )


def _latencies(good: Sequence[Record], records: Sequence[Record]) -> dict[str, Any]:
    return {
        "ttft_s": spread(_known(record.ttft_s for record in good)),
        "inter_token_s": spread([gap for record in good for gap in record.gaps_s]),
        "time_per_output_token_s": spread(_known(record.tpot_s for record in good)),
        "e2e_s": spread(_known(record.e2e_s for record in good)),
        "send_lag_s": spread(_known(record.send_lag_s for record in records)),
    }


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _rate(count: float, run: Run) -> float | None:
    return count / run.elapsed_s if run.elapsed_s else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _goodput(run: Run, goodput: Mapping[str, float]) -> dict[str, Any]:
    """Of all requests that were due, failed and unfinished ones too."""
    if not goodput:
        return {}
    num_met = sum(meets(record, goodput) for record in run.records)
    return {
        "requests_per_s": _rate(num_met, run),
        "share": _ratio(num_met, len(run.records)),
    }


def _server_figures(run: Run) -> dict[str, Any]:
    """What the server's own counters say of the time of the run."""
    grew = run.counters.get
    return {
        "cache_hit_rate": _ratio(grew("cached_tokens"), grew("prompt_tokens")),
        "recompiles": grew("recompiles"),
        "retractions": grew("retractions"),
        "server_mean_ttft_s": _ratio(grew("ttft_sum_s"), grew("ttft_count")),
        "server_mean_inter_token_s": _ratio(grew("inter_token_sum_s"), grew("inter_token_count")),
        "running_requests": _gauge(run.samples, "num_running"),
        "waiting_requests": _gauge(run.samples, "num_waiting"),
    }


def _gauge(samples: Sequence[Sample], name: str) -> dict[str, float]:
    """Of the looks between the first and the last, which fall outside of the load."""
    values = [sample.metrics[name] for sample in samples[1:-1] if name in sample.metrics]
    return {"mean": sum(values) / len(values), "peak": max(values)} if values else {}


def _device_figures(samples: Sequence[Sample]) -> dict[str, Any]:
    devices = [device for sample in samples[1:-1] for device in sample.devices]
    if not devices:
        return {"device_utilisation": None, "device_memory_bytes": None}
    used = [device["utilisation"] for device in devices]
    return {
        "device_utilisation": sum(used) / len(used),
        "device_memory_bytes": max(device["memory_used_bytes"] for device in devices),
    }
