"""The figures that the cache benches work out from what they measured."""

import pytest

from bench.chat_latency import reductions
from bench.prefix_cache import TurnUsage, cached_share
from bench.soak import SoakResult, slope

IDLE = {
    "num_running_reqs": 0.0,
    "num_queue_reqs": 0.0,
    "radix_locks": 0.0,
    "recompiles_total": 0.0,
    "cache_rebuilds_total": 0.0,
    "slots_total": 16.0,
    "slots_free": 16.0,
    "pages_total": 88.0,
    "pages_free": 30.0,
    "pages_cached": 58.0,
}


def test_reductions_are_in_percent_of_all_off():
    everything_on = {"turn_latency_s": {"p50": 3.0, "p99": 5.0}, "pages_held_peak": 70.0}
    all_off = {"turn_latency_s": {"p50": 4.0, "p99": 10.0}, "pages_held_peak": 100.0}
    assert reductions(everything_on, all_off) == pytest.approx(
        {
            "p50_latency_reduction_percent": 25.0,
            "p99_latency_reduction_percent": 50.0,
            "peak_pages_reduction_percent": 30.0,
        }
    )


def test_the_share_is_of_all_prompt_tokens():
    assert cached_share([TurnUsage(100, 0, 1.0), TurnUsage(300, 300, 1.0)]) == 0.75


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({}, {}),
        ({"radix_locks": 1.0}, {"radix_locks": 1.0}),
        ({"pages_free": 29.0}, {"pages": 1.0}),
        (
            {"slots_free": 15.0, "cache_rebuilds_total": 2.0},
            {"slots": 1, "cache_rebuilds_total": 2},
        ),
    ],
)
def test_a_soak_tells_what_is_left(change, held):
    assert SoakResult({}, IDLE | change, [], 0.0).held == held


def test_growth_is_a_least_squares_slope():
    assert slope([(0.0, 10.0), (1.0, 12.0), (2.0, 14.0)]) == pytest.approx(2.0)
