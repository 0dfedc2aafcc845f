"""Two results side by side: ratios of their figures, and how sure they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.serving.records import Record
from bench.serving.report import LATENCIES
from bench.serving.terminal import aligned

NUM_RESAMPLES = 1000
LEVEL = 95
NUM_SLICES = 20
MIN_BEYOND = 5
"""Requests that must lie beyond a percentile, or resampling tells nothing of it."""
_SAME_PROMPTS = (
    "seed", "dataset", "num_prompts", "input_len", "output_len", "range_ratio", "prompt_form",
    "num_prefixes", "prefix_len", "turns", "tree_depth", "tree_width", "dataset_path",
)  # fmt: skip
"""Settings that decide what is asked."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""From samples in the last axis to one figure each."""


@dataclass(frozen=True)
class Result:
    """What a result file holds of a run."""

    settings: dict[str, Any]
    records: list[Record]
    elapsed_s: float

    @classmethod
    def read(cls, path: str) -> Result:
        """Raises OSError or ValueError if it is no result of a serving benchmark."""
        try:
            content = json.loads(Path(path).read_text())
            if content["bench"] != "serving":
                raise ValueError(f"{path}: a result of {content['bench']!r}, not of 'serving'")
            records = [Record(**record) for record in content["requests"]]
            return cls(content["settings"], records, content["summary"]["elapsed_s"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a result: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Ratio:
    """`second` / `first` of a figure, with the ends of its confidence interval."""

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        return self.second / self.first

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high


def compare(first: Result, second: Result, seed: int = 0) -> list[Ratio]:
    """Percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) over the requests.

    Where both runs asked the same, requests are resampled in pairs, so that what differs between
    prompts does not count as noise. Throughput is resampled over NUM_SLICES equal stretches of
    each run. Figures that either run lacks, or that are 0 in the first, are left out, and so are
    percentiles of too few requests.
    """
    rng = np.random.default_rng(seed)
    ratios: list[Ratio] = []
    paired = all(first.settings.get(name) == second.settings.get(name) for name in _SAME_PROMPTS)
    for name, figure in LATENCIES.items():
        a, b = _values(first, second, figure, paired=paired)
        if len(a) and len(b):
            ratios += _ratios(rng, name, a, b, paired=paired)
    for name, slices in (("output tokens/s", _token_slices), ("requests/s", _request_slices)):
        a, b = slices(first), slices(second)
        if a.any() and b.any():
            ratios.append(_ratio(rng, name, a, b, _mean, paired=False))
    return ratios


def comparison_lines(ratios: Sequence[Ratio]) -> list[str]:
    """Latencies in milliseconds."""
    table = [["", "first", "second", "second/first", f"{LEVEL} % interval", ""]]
    for each in ratios:
        scale = 1 if each.name.endswith("/s") else 1000
        interval = f"{each.low:.3f} to {each.high:.3f}"
        values = (f"{scale * each.first:,.2f}", f"{scale * each.second:,.2f}")
        verdict = "differs" if each.differs else "no difference shown"
        table.append([each.name, *values, f"{each.ratio:.3f}", interval, verdict])
    return aligned(table)


def _values(
    first: Result, second: Result, figure: Callable[[Record], float | None], *, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The figure of every complete request; if paired, of those complete in both, in one order."""
    a, b = (
        {
            (record.conversation, record.turn): value
            for record in result.records
            if record.ok and (value := figure(record)) is not None
        }
        for result in (first, second)
    )
    if paired:
        both = sorted(a.keys() & b.keys())
        return np.array([a[key] for key in both]), np.array([b[key] for key in both])
    return np.array(list(a.values())), np.array(list(b.values()))


def _mean(samples: np.ndarray) -> np.ndarray:
    return samples.mean(axis=-1)


def _percentile(rank: int) -> Statistic:
    return lambda samples: np.percentile(samples, rank, axis=-1)


def _ratios(
    rng: np.random.Generator, name: str, a: np.ndarray, b: np.ndarray, *, paired: bool
) -> list[Ratio]:
    enough = min(len(a), len(b)) / MIN_BEYOND
    ranks = [rank for rank in (50, 90, 99) if enough * (100 - rank) >= 100]
    statistics = {"mean": _mean} | {f"p{rank}": _percentile(rank) for rank in ranks}
    return [
        _ratio(rng, f"{name} {of}", a, b, statistic, paired=paired)
        for of, statistic in statistics.items()
        if statistic(a) > 0
    ]


def _ratio(
    rng: np.random.Generator,
    name: str,
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic,
    *,
    paired: bool,
) -> Ratio:
    rows_a = rng.integers(len(a), size=(NUM_RESAMPLES, len(a)))
    rows_b = rows_a if paired else rng.integers(len(b), size=(NUM_RESAMPLES, len(b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = statistic(b[rows_b]) / statistic(a[rows_a])
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(resampled[np.isfinite(resampled)], [tail, 100 - tail])
    return Ratio(name, float(statistic(a)), float(statistic(b)), float(low), float(high))


def _token_slices(result: Result) -> np.ndarray:
    """Output tokens per second in each slice; the tokens of an answer shared by its events."""
    complete = [record for record in result.records if record.ok and record.event_s]
    moments = [moment_s for record in complete for moment_s in record.event_s]
    weights = [
        record.output_len / len(record.event_s) for record in complete for _ in record.event_s
    ]
    return _slices(result, moments, weights)


def _request_slices(result: Result) -> np.ndarray:
    ends = [record.end_s for record in result.records if record.ok and record.end_s is not None]
    return _slices(result, ends, [1.0] * len(ends))


def _slices(result: Result, moments: Sequence[float], weights: Sequence[float]) -> np.ndarray:
    if not result.elapsed_s:
        return np.zeros(NUM_SLICES)
    span = (0.0, result.elapsed_s)
    counts, _ = np.histogram(moments, bins=NUM_SLICES, range=span, weights=weights)
    return counts * NUM_SLICES / result.elapsed_s
