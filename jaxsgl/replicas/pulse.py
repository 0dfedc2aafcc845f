"""When a replica that has not ended is taken for dead. Pure: the caller counts the seconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass

CHECK_PERIOD_S = 1.0
"""Between two beats. A replica reports as often."""


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When a replica that does not end is taken for dead. Reports come every second."""

    busy_s: float = 120.0
    """It says nothing for so long though it has requests."""
    probe_period_s: float = 60.0
    """While it has none it is probed so often; the answer to one must be there before the next."""


class Verdict(enum.Enum):
    WELL = enum.auto()
    PROBE = enum.auto()
    """Ask it for a sign of life; `Pulse.probe_answered` when it comes."""
    DEAD = enum.auto()


class Pulse:
    """Counts in beats, not by a clock: if this process was suspended, so was its ear."""

    def __init__(self, limits: HealthLimits) -> None:
        self.silent_s = 0.0
        """Since it was heard last."""
        self._limits = limits
        self._idle_s = 0.0
        """Since it had a request or was probed."""
        self._probe_is_out = False

    def beat(self, *, heard: bool, busy: bool) -> Verdict:
        """Another CHECK_PERIOD_S is over, in which the replica was heard or not."""
        self.silent_s = 0.0 if heard else self.silent_s + CHECK_PERIOD_S
        if busy:
            self._idle_s = 0.0
            self._probe_is_out = False
            return Verdict.DEAD if self.silent_s >= self._limits.busy_s else Verdict.WELL
        self._idle_s += CHECK_PERIOD_S
        if self._idle_s < self._limits.probe_period_s:
            return Verdict.WELL
        if self._probe_is_out:
            self.silent_s = max(self.silent_s, self._idle_s)
            return Verdict.DEAD
        self._idle_s = 0.0
        self._probe_is_out = True
        return Verdict.PROBE

    def probe_answered(self) -> None:
        self._probe_is_out = False
