"""The readings of several replicas as one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from jaxsgl.interface import EngineStats

GAUGES = (
    "num_running",
    "num_waiting",
    "pages_total",
    "pages_free",
    "pages_cached",
    "pages_held_peak",
    "locks",
    "holds",
    "slots_free",
    "slots_total",
    "tokens_held",
    "generated_per_s",
)
"""Fields of EngineStats that say how things are now; the others only ever grow."""


def total(readings: Iterable[EngineStats]) -> EngineStats:
    """Field by field, their sum."""
    names = EngineStats.__struct_fields__
    columns = zip(*map(msgspec.structs.astuple, readings), strict=True)
    sums: dict[str, Any] = {name: sum(each) for name, each in zip(names, columns, strict=False)}
    return EngineStats(**sums)


def counters_of(stats: EngineStats) -> EngineStats:
    """What of a reading still counts when its replica is gone."""
    return msgspec.structs.replace(stats, **dict.fromkeys(GAUGES, 0))
