"""Sweeps and their knee, against queues whose knee is known."""

import pytest

from bench.serving.sweep import Point, Sweep, best_goodput, knee, sweep_lines


def queue(load: float, goodput: float | None = None) -> Point:
    """A queue with one server of one request per second, and random arrivals and services."""
    rate, mean_s = (load, 1 / (1 - load)) if load < 1 else (1.0, 100.0)
    return Point(
        load,
        {
            "requests_per_s": rate,
            "output_tokens_per_s": 64 * rate,
            "e2e_s": {"mean": mean_s},
            "ttft_s": {"p50": mean_s / 2, "p99": 4 * mean_s},
            "time_per_output_token_s": {"p50": 0.01},
            "cache_hit_rate": None,
            "goodput": {} if goodput is None else {"requests_per_s": goodput},
            "errors": 0,
            "unfinished": 0,
        },
    )


def test_the_knee_of_a_queue_is_at_half_its_capacity():
    points = [queue(load) for load in (0.1, 0.3, 0.5, 0.7, 0.9, 1.5)]
    assert knee(points) == 0.5
    assert sweep_lines("request-rate", points)[-1].endswith("request-rate 0.5")


def test_no_knee_where_nothing_was_answered():
    nothing = Point(1.0, {"requests_per_s": None, "e2e_s": {}, "goodput": {}})
    assert knee([]) is knee([nothing]) is None
    assert best_goodput([nothing]) is None


def test_goodput_has_its_best_value():
    points = [queue(0.1, 0.1), queue(0.5, 0.45), queue(0.9, 0.2)]
    assert best_goodput(points) == 0.5
    assert sweep_lines("request-rate", points)[-1] == "most goodput: request-rate 0.5"


def test_a_sweep_is_written_with_its_values():
    sweep = Sweep.parse("max-concurrency=1,2,16")
    assert (sweep.values, sweep.destination) == ((1, 2, 16), "max_concurrency")
    for bad in ("seed=1", "request-rate", "request-rate=", "request-rate=2,1", "request-rate=0,1"):
        with pytest.raises(ValueError):
            Sweep.parse(bad)
