"""A line on the terminal that says how far the load is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from bench.serving.client import Clock
from bench.serving.driver import Load

PERIOD_S = 0.5


class Progress:
    """Writes to a terminal; to anything else it writes nothing."""

    def __init__(self, out: TextIO, *, enabled: bool = True) -> None:
        self._out = out
        self._enabled = enabled and out.isatty()
        self.label = ""

    @contextmanager
    def of(self, load: Load, clock: Clock) -> Iterator[None]:
        if not self._enabled:
            yield
            return
        showing = asyncio.create_task(self._show(load, clock))
        try:
            yield
        finally:
            showing.cancel()
            self._out.write("\r\x1b[K")
            self._out.flush()

    async def _show(self, load: Load, clock: Clock) -> None:
        while True:
            self._out.write(f"\r\x1b[K{self.label}{progress_line(load, clock.now_s())}")
            self._out.flush()
            await asyncio.sleep(PERIOD_S)


def progress_line(load: Load, now_s: float) -> str:
    records = load.records
    num_open = sum(record.end_s is None for record in records)
    num_failed = sum(record.failed for record in records)
    num_events = sum(len(record.event_s) for record in records)
    state = f"draining, {num_open} open" if load.sending_is_over else f"{num_open} open"
    rate = num_events / now_s if now_s > 0 else 0.0
    return (
        f"{now_s:6.1f} s  {len(records)} due, {state}, {num_failed} failed, "
        f"{rate:,.0f} output events/s"
    )
