"""What the scheduler promises of its hit rates and waits, simulated: the same on every machine."""

import pytest

from bench.fairness import longest_wait_s
from bench.hit_rate import WORKLOADS, record, share_of_ideal

POOL_SHARE = 0.4
"""Of the distinct tokens of a workload."""


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_lpm_comes_close_to_the_ideal_hit_rate(workload):
    assert share_of_ideal(workload, "lpm", POOL_SHARE)[1] >= 0.96


def test_the_order_of_arrival_does_not():
    """Else the figures above would say nothing about `lpm`."""
    assert share_of_ideal(WORKLOADS["multi-turn chat"], "fcfs", POOL_SHARE)[1] < 0.9


def test_what_requests_were_told_adds_up_to_the_counters():
    recorder = record(WORKLOADS["tree of forks"], "lpm", 20_000)
    stats = recorder.replica.stats()
    assert stats.cached_tokens == recorder.cached_tokens > 0
    assert stats.prompt_tokens == recorder.prompt_tokens


def test_lpm_makes_nobody_wait_twice_as_long():
    fcfs, lpm = (longest_wait_s(policy, rate=14) for policy in ("fcfs", "lpm"))
    assert fcfs > 0.5  # busy enough that somebody waits at all
    assert lpm <= 2 * fcfs
