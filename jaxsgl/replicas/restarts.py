"""How often and how soon what has died is started again. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most `max_restarts` within any `period_s`; the n-th waits 2**(n - 1) times
    `first_delay_s`."""

    max_restarts: int = 3
    period_s: float = 600.0
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0


class RestartWindow:
    """Counts the restarts of the last period."""

    def __init__(self, policy: RestartPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._times: deque[float] = deque()

    def next_delay_s(self) -> float | None:
        """Count one more restart: seconds to wait before it, or None if there were too many."""
        policy, now = self._policy, self._clock()
        while self._times and now - self._times[0] >= policy.period_s:
            self._times.popleft()
        if len(self._times) >= policy.max_restarts:
            return None
        self._times.append(now)
        exponent = min(len(self._times) - 1, 60)
        return min(policy.first_delay_s * 2**exponent, policy.max_delay_s)
