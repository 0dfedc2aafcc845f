"""When a server looks for objects that only refer to each other.

Python by itself goes through all objects whenever they have become a quarter more, and everything
stands still meanwhile: for half a second with ten thousand connections open. A rush of clients
makes it do so again and again, and finds nothing, since all that came with them is in use. So young
objects are gone through as ever, and all of them when it takes little time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Generator

PERIOD_S = 5.0
MIN_YOUNG_PASSES = 10
"""Passes through young objects since the last one through all; Python's own measure."""
FEW_CLIENTS = 500
"""So many connections make a pass of some 15 ms."""
MAX_DELAY_S = 600.0
"""With more clients than that, a pass is put off so long."""

_NEVER = 1 << 30


@contextlib.contextmanager
def no_long_passes() -> Generator[None]:
    """Meanwhile only young objects are gone through, and those that are there now never."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds[:2], _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def collect_when_quiet(num_clients: Callable[[], int]) -> None:
    """Go through all objects when that `is_due`, until cancelled."""
    last_s = time.monotonic()
    while True:
        await asyncio.sleep(PERIOD_S)
        since_s = time.monotonic() - last_s
        if is_due(gc.get_count()[2], num_clients(), since_s):
            gc.collect()
            last_s = time.monotonic()


def is_due(num_young_passes: int, num_clients: int, since_s: float) -> bool:
    """Whether to go through all objects: there may be something to find, and it takes little time
    or has been put off for long."""
    if num_young_passes < MIN_YOUNG_PASSES:
        return False
    return num_clients <= FEW_CLIENTS or since_s >= MAX_DELAY_S
