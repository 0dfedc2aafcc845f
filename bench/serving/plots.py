"""Pictures of runs, as PNG, SVG, or a page that holds one."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.serving.records import Record
from bench.serving.runs import Run
from bench.serving.server_watch import Sample
from bench.serving.sweep import Point, knee

FORMATS = (".png", ".svg", ".html")
MAX_BINS = 60
MIN_BIN_S = 1.0


def plot_run(run: Run, title: str) -> Figure:
    """Latencies, throughput, hit rate and batch occupancy of one run."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(2, 2)
    _latencies(panels[0, 0], [record for record in run.records if record.ok])
    _throughput(panels[0, 1], run)
    _hit_rate(panels[1, 0], run.samples)
    _occupancy(panels[1, 1], run.samples)
    for panel in panels[0, 1], panels[1, 0], panels[1, 1]:
        panel.set_xlabel("seconds")
        panel.set_xlim(0, max(run.elapsed_s, 1e-3))
    return figure


def plot_sweep(setting: str, points: Sequence[Point], title: str) -> Figure:
    """Throughput and delay over the swept setting, with its knee."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    values = [point.value for point in points]
    rates = [point.summary["requests_per_s"] or 0.0 for point in points]
    left.plot(values, rates, "o-", label="complete")
    if any(point.summary["goodput"] for point in points):
        good = [point.summary["goodput"].get("requests_per_s") or 0.0 for point in points]
        left.plot(values, good, "s--", label="within the bounds")
    left.set_ylabel("requests/s")
    for rank in ("p50", "p99"):
        delays = [1000 * point.summary["ttft_s"].get(rank, np.nan) for point in points]
        right.plot(values, delays, "o-", label=f"time to first token, {rank}")
    means = [1000 * point.summary["e2e_s"].get("mean", np.nan) for point in points]
    right.plot(values, means, "s--", label="end to end, mean")
    right.set_ylabel("ms")
    right.set_yscale("log")
    found = knee(points)
    for panel in (left, right):
        if found is not None:
            panel.axvline(found, color="grey", linestyle=":", label=f"knee: {found:g}")
        panel.set_xlabel(setting)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure


def save(figure: Figure, path: str) -> None:
    """In the format that the name ends in, one of FORMATS."""
    if not path.endswith(".html"):
        figure.savefig(path, dpi=130)
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    title = html.escape(figure.get_suptitle())
    page = f"<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n"
    Path(path).write_text(page + svg[svg.index("<svg") :])


def _latencies(panel: Axes, good: Sequence[Record]) -> None:
    curves = {
        "inter-token": [gap for record in good for gap in record.gaps_s],
        "time to first token": [r.ttft_s for r in good if r.ttft_s is not None],
        "end to end": [r.e2e_s for r in good if r.e2e_s is not None],
    }
    for name, values_s in curves.items():
        if values_s:
            ordered = 1000 * np.sort(np.array(values_s))
            panel.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), label=name)
    panel.set(title="latencies", xlabel="ms", ylabel="share of at most that", xscale="log")
    panel.set_ylim(0, 1.02)
    _finish(panel, bool(good))


def _throughput(panel: Axes, run: Run) -> None:
    records = [record for record in run.records if record.event_s]
    moments = [moment_s for record in records for moment_s in record.event_s]
    weights = [r.output_len / len(r.event_s) for r in records for _ in r.event_s]
    bin_s = max(MIN_BIN_S, run.elapsed_s / MAX_BINS)
    edges = np.arange(0.0, run.elapsed_s + bin_s, bin_s)
    if moments and len(edges) > 1:
        counts, _ = np.histogram(moments, edges, weights=weights)
        panel.stairs(counts / bin_s, edges, fill=True, alpha=0.6, label="output tokens/s")
        panel.axvline(run.sending_s, color="grey", linestyle=":", label="sending ended")
    panel.set(title="throughput", ylabel="tokens/s")
    _finish(panel, bool(moments))


def hit_rates(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """(seconds, share of the prompt tokens admitted since the look before that were cached)"""
    rates: list[tuple[float, float]] = []
    for before, after in pairwise(sample for sample in samples if sample.metrics):
        grown = {
            name: after.metrics.get(name, 0.0) - before.metrics.get(name, 0.0)
            for name in ("prompt_tokens", "cached_tokens")
        }
        if grown["prompt_tokens"] > 0 and "cached_tokens" in after.metrics:
            rates.append((after.time_s, grown["cached_tokens"] / grown["prompt_tokens"]))
    return rates


def _hit_rate(panel: Axes, samples: Sequence[Sample]) -> None:
    rates = hit_rates(samples)
    if rates:
        panel.plot(*zip(*rates, strict=True), "o-", markersize=3, label="cached share")
    panel.set(title="cache hit rate of the prompts admitted then", ylabel="share")
    panel.set_ylim(-0.02, 1.02)
    _finish(panel, bool(rates))


def _occupancy(panel: Axes, samples: Sequence[Sample]) -> None:
    told = [sample for sample in samples if "num_running" in sample.metrics]
    moments = [sample.time_s for sample in told]
    for name, label in (("num_running", "running"), ("num_waiting", "waiting")):
        values = [sample.metrics.get(name, np.nan) for sample in told]
        panel.plot(moments, values, "o-", markersize=3, label=label)
    slots = next(
        (sample.metrics["num_slots"] for sample in told if "num_slots" in sample.metrics), 0
    )
    if slots:
        panel.axhline(slots, color="grey", linestyle=":", label="places in the batch")
    panel.set(title="batch occupancy", ylabel="requests")
    panel.set_ylim(bottom=0)
    _finish(panel, bool(told))


def _finish(panel: Axes, has_data: bool) -> None:
    panel.grid(alpha=0.3)
    if has_data:
        panel.legend(fontsize=8)
    else:
        panel.text(0.5, 0.5, "nothing to show", ha="center", transform=panel.transAxes)
