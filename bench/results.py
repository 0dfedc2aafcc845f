"""What every bench writes: one JSON file per run, in one format."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxsgl

PERCENTILES = (50, 90, 99)


def write_result(
    path: str | None,
    bench: str,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    requests: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a run to `path`, if one is given. Times are seconds, rates are per second.

    `requests` and `samples` (looks at the server while it ran) take a line each.
    """
    if path is None:
        return
    result = {
        "bench": bench,
        "version": jaxsgl.__version__,
        "machine": platform.node(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "summary": dict(summary),
    }
    text = json.dumps(result, indent=1, allow_nan=False).removesuffix("\n}")
    for name, entries in (("requests", requests), ("samples", samples)):
        lines = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in entries)
        text += f',\n "{name}": [\n  {lines}\n ]'
    Path(path).write_text(text + "\n}\n")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles by nearest rank; nothing of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered), **ranks}


def show(summary: Mapping[str, Any]) -> None:
    """A table for the terminal; nested mappings share a line."""
    width = max(map(len, summary))
    for name, value in summary.items():
        if isinstance(value, Mapping):
            value = "  ".join(f"{key} {_short(each)}" for key, each in value.items()) or "n/a"
        print(f"{name:{width}}  {_short(value)}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else _whole(value)


def _whole(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else str(value)
