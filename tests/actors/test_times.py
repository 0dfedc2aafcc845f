"""What takes how long in a replica."""

from __future__ import annotations

from jaxsgl.actors.times import QueueMeter, RateMeter, TimeMeter


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_buckets_hold_what_is_at_most_their_end():
    meter = TimeMeter()
    for seconds in (0.0, 0.001, 0.0011, 30.0, 31.0):
        meter.observe(seconds)
    counts = meter.reading().counts
    assert (counts[0], counts[1], counts[-2], counts[-1], sum(counts)) == (2, 1, 1, 1, 5)


def test_waiting_is_counted_once_and_forgotten_with_the_request():
    clock = Clock()
    meter = QueueMeter(clock)
    meter.arrived("a")
    meter.arrived("b")
    clock.now_s += 2
    meter.placed(["a", "unknown"])
    meter.placed(["a"])  # after a retraction
    meter.gone(["a", "b"])
    assert len(meter) == 0
    assert sum(meter.reading().counts) == 1 and meter.reading().sum_s == 2


def test_rate_over_the_last_seconds():
    clock = Clock()
    meter = RateMeter(clock)
    assert meter.rate(0) == 0
    for n in range(1, 21):
        clock.now_s += 1
        rate = meter.rate(100 * n)
    assert rate == 100
    clock.now_s += 5
    assert meter.rate(2000) == 50  # five of the last ten seconds brought nothing
    clock.now_s += 30
    assert meter.rate(2000) == 0
