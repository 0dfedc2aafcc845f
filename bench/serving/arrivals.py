"""When requests of an open loop are due."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """The rate changes linearly from `from_rate` per second to the full one in `over_s` seconds."""

    from_rate: float
    over_s: float

    def __post_init__(self) -> None:
        if not (self.from_rate >= 0 and 0 < self.over_s < math.inf):
            raise ValueError("a ramp starts at a rate of 0 or more and takes more than 0 s")

    @classmethod
    def parse(cls, text: str) -> Ramp:
        """From "RATE:SECONDS"; ValueError if it is not that."""
        rate, _, seconds = text.partition(":")
        return cls(float(rate), float(seconds))


def arrivals(
    rng: random.Random, rate: float, burstiness: float = 1.0, ramp: Ramp | None = None
) -> Iterator[float]:
    """Moments in seconds from the start, without end.

    Gaps are independent, of mean 1 / `rate`, and gamma-distributed with the shape `burstiness`:
    at 1 arrivals are a Poisson process, below they come in bursts, above more evenly. A rate of
    infinity makes everything due at once. A ramp stretches time: `Ramp` holds until its end, and
    the gaps keep their distribution in units of the momentary rate.
    """
    expected = 0.0
    while True:
        if math.isinf(rate):
            yield 0.0
            continue
        expected += rng.gammavariate(burstiness, 1 / burstiness)
        yield _moment(expected, rate, ramp)


def _moment(expected: float, rate: float, ramp: Ramp | None) -> float:
    """When `expected` arrivals are to be expected: the inverse of the integral of the rate."""
    if ramp is None:
        return expected / rate
    on_ramp = ramp.over_s * (ramp.from_rate + rate) / 2
    if expected > on_ramp:
        return ramp.over_s + (expected - on_ramp) / rate
    slope = (rate - ramp.from_rate) / ramp.over_s
    # from_rate t + slope t² / 2 = expected, solved in the form that stays exact for small slopes
    return 2 * expected / (ramp.from_rate + math.sqrt(ramp.from_rate**2 + 2 * slope * expected))
