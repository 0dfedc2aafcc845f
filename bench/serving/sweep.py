"""One setting of the load, value by value: where more load stops to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.serving.terminal import aligned, milliseconds, number, percent

SWEPT = {"request-rate": float, "max-concurrency": int}


@dataclass(frozen=True)
class Sweep:
    setting: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """From "request-rate=1,2,4"; ValueError if it is not that."""
        setting, _, values = text.partition("=")
        if setting not in SWEPT:
            raise ValueError(f"a sweep is over {' or '.join(SWEPT)}, not over {setting!r}")
        parsed = tuple(map(SWEPT[setting], values.split(",")))
        if list(parsed) != sorted(set(parsed)) or parsed[0] <= 0:
            raise ValueError("the values of a sweep are positive and go up")
        return cls(setting, parsed)

    @property
    def destination(self) -> str:
        """Its name among the settings."""
        return self.setting.replace("-", "_")


@dataclass(frozen=True)
class Point:
    value: float
    summary: Mapping[str, Any]


def power(point: Point) -> float:
    """Throughput over delay: requests per second by the mean seconds of one."""
    rate, mean_s = point.summary["requests_per_s"], point.summary["e2e_s"].get("mean")
    return rate / mean_s if rate and mean_s else 0.0


def knee(points: Sequence[Point]) -> float | None:
    """The value of most power (Kleinrock, "Power and deterministic rules of thumb", 1979): below
    it more load buys throughput at little delay, above it delay at little throughput."""
    best = max(points, key=power, default=None)
    return best.value if best is not None and power(best) else None


def best_goodput(points: Sequence[Point]) -> float | None:
    """The value with most requests per second within the bounds."""
    rates = {point.value: point.summary["goodput"].get("requests_per_s") for point in points}
    known = {value: rate for value, rate in rates.items() if rate}
    return max(known, key=known.__getitem__, default=None)


def sweep_lines(setting: str, points: Sequence[Point]) -> list[str]:
    header = [setting, "requests/s", "tokens/s", "ttft p50", "ttft p99", "tpot p50", "e2e mean"]
    table = [[*header, "hit rate", "goodput", "failed", "cut off"]]
    for point in points:
        get = point.summary.__getitem__
        table.append(
            [
                number(point.value),
                number(get("requests_per_s")),
                number(get("output_tokens_per_s")),
                milliseconds(get("ttft_s").get("p50")),
                milliseconds(get("ttft_s").get("p99")),
                milliseconds(get("time_per_output_token_s").get("p50")),
                milliseconds(get("e2e_s").get("mean")),
                percent(get("cache_hit_rate")),
                number(get("goodput").get("requests_per_s")),
                number(get("errors")),
                number(get("unfinished")),
            ]
        )
    lines = aligned(table)
    found = knee(points)
    lines.append(f"knee (most throughput over delay): {setting} {number(found)}")
    if (best := best_goodput(points)) is not None:
        lines.append(f"most goodput: {setting} {number(best)}")
    return lines
