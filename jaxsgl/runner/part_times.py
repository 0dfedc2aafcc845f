"""What took how long."""

from __future__ import annotations

import time
from collections.abc import Callable


class PartTimes:
    """Seconds that each part of a piece of work took, where one begins as another ends."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin_s = clock()
        self._parts: dict[str, float] = {}

    def ended(self, part: str) -> None:
        end_s = self._clock()
        self._parts[part] = end_s - self._begin_s
        self._begin_s = end_s

    def of(self, part: str) -> float | None:
        """None if there was no such part."""
        return self._parts.get(part)

    def __str__(self) -> str:
        return ", ".join(f"{part} {elapsed_s:.2f} s" for part, elapsed_s in self._parts.items())
