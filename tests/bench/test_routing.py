"""What the load balancing policies promise, on simulated replicas."""

import pytest

from bench.routing import main
from bench.simulated_fleet import Machine, Workload, simulate
from jaxsgl.config import BALANCING_POLICIES

FOUR = [Machine(pool_tokens=20 * 2176)] * 4


def test_cache_aware_finds_far_more_in_the_caches_and_keeps_the_balance():
    """64 groups of 16 requests, caches of 20 groups each, random order."""
    aware, robin = (simulate(name, FOUR, Workload()) for name in ("cache-aware", "round-robin"))
    assert robin.imbalance == 1.0
    assert aware.hit_rate >= 2.5 * robin.hit_rate
    assert aware.imbalance <= 1.3
    assert aware.ttft_p99_s < robin.ttft_p99_s


@pytest.mark.parametrize("policy", BALANCING_POLICIES)
def test_no_policy_loses_a_request_or_lets_a_replica_rest(policy):
    small = Workload(num_groups=8, group_size=4, shared_len=128, own_len=32, answer_len=4)
    outcome = simulate(policy, FOUR[:2], small)
    assert outcome.imbalance < 3
    assert 0 < outcome.ttft_p50_s <= outcome.ttft_p99_s < 5


def test_the_command_draws_what_it_found(tmp_path, capsys):
    figure = tmp_path / "figure.svg"
    args = ["--replicas", "1", "2", "--policies", "random", "--rate", "60", "--plot", str(figure)]
    main(args)
    assert figure.read_text().startswith("<?xml")
    assert capsys.readouterr().out.count("random") == 2
