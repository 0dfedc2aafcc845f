"""How long things take in a replica, gathered while it runs."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable

from jaxsgl.interface import TIME_BOUNDS_S, TimeHistogram

RATE_WINDOW_S = 10.0


class TimeMeter:
    """Observed in one thread, read in any: a reading may be one observation behind itself."""

    def __init__(self) -> None:
        self._counts = [0] * (len(TIME_BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(TIME_BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def reading(self) -> TimeHistogram:
        return TimeHistogram(tuple(self._counts), self._sum_s)


class QueueMeter:
    """From the arrival of each request to its first place in a step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._arrived_s: dict[str, float] = {}
        self._times = TimeMeter()

    def __len__(self) -> int:
        """Requests that still wait."""
        return len(self._arrived_s)

    def arrived(self, request_id: str) -> None:
        self._arrived_s[request_id] = self._clock()

    def placed(self, request_ids: Iterable[str]) -> None:
        now_s = self._clock()
        for request_id in request_ids:
            if (arrived_s := self._arrived_s.pop(request_id, None)) is not None:
                self._times.observe(now_s - arrived_s)

    def gone(self, request_ids: Iterable[str]) -> None:
        """Nothing is left of these, whether they were placed or not."""
        for request_id in request_ids:
            self._arrived_s.pop(request_id, None)

    def reading(self) -> TimeHistogram:
        return self._times.reading()


class RateMeter:
    """How fast a counter grew over the last RATE_WINDOW_S seconds of its readings."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._readings: deque[tuple[float, int]] = deque()

    def rate(self, count: int) -> float:
        """Per second, with `count` as the reading of this moment."""
        now_s = self._clock()
        while len(self._readings) > 1 and self._readings[1][0] <= now_s - RATE_WINDOW_S:
            self._readings.popleft()
        self._readings.append((now_s, count))
        begin_s, before = self._readings[0]
        return (count - before) / (now_s - begin_s) if now_s > begin_s else 0.0
