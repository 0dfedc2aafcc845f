"""Each policy alone, and what all of them keep to."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from jaxsgl.actors.messages import Speed
from jaxsgl.config import BALANCING_POLICIES, ConfigError
from jaxsgl.interface import EngineStats
from jaxsgl.replicas.routing.load import Guard, Job, ReplicaLoad
from jaxsgl.replicas.routing.policies import make_policy

NUM_REQUESTS = 2000
JOB = Job(100)


def replicas(*weights: float, num_rows: int = 16) -> list[ReplicaLoad]:
    stats = EngineStats(slots_total=num_rows, pages_total=1000, pages_free=1000)
    speed = Speed(prefill_token_s=0.001, decode_step_s=0.01)
    return [ReplicaLoad(n, weight, stats, speed) for n, weight in enumerate(weights)]


def shares(policy_name: str, loads: list[ReplicaLoad], num_open: int = 0) -> list[float]:
    """Of NUM_REQUESTS, `num_open` at a time, what each replica gets."""
    policy, counts = make_policy(policy_name, seed=1), Counter[int]()
    guards: list[Guard] = []
    for n in range(NUM_REQUESTS):
        chosen = policy.choose(JOB, loads, n * 0.01)
        counts[chosen.replica_id] += 1
        guards.append(Guard(chosen, JOB))
        if len(guards) > num_open:
            guards.pop(0).release()
    for guard in guards:
        guard.release()
    return [counts[load.replica_id] / NUM_REQUESTS for load in loads]


def test_round_robin_gives_equal_shares():
    assert shares("round-robin", replicas(5, 1, 1)) == pytest.approx([1 / 3] * 3, rel=0.02)


def test_a_replica_whose_first_steps_were_slow_gets_its_share_of_a_burst():
    loads = replicas(1, 1)
    loads[1].speed = Speed(prefill_token_s=0.02, decode_step_s=0.01)
    assert shares("cache-aware", loads, num_open=500) == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_replica_that_is_slow_keeps_its_backlog_and_gets_less():
    loads, policy = replicas(1, 1), make_policy("cache-aware", 0)
    guards: dict[int, list[Guard]] = {0: [], 1: []}
    for turn in range(300):
        chosen = policy.choose(JOB, loads, turn * 0.1)
        guards[chosen.replica_id].append(Guard(chosen, JOB))
        for replica_id, turns in ((0, 1), (1, 10)):  # one is ten times as slow
            if turn % turns == 0 and guards[replica_id]:
                guards[replica_id].pop(0).release()
    assert len(guards[1]) < 10 and loads[1].num_in_flight == len(guards[1])


def test_weighted_gives_shares_by_weight():
    assert shares("weighted", replicas(2, 1)) == pytest.approx([2 / 3, 1 / 3], rel=0.02)
    assert shares("weighted", replicas(1, 1, 0.5)) == pytest.approx([0.4, 0.4, 0.2], rel=0.02)


def test_weighted_spreads_the_shares_evenly():
    policy, loads = make_policy("weighted", 0), replicas(2, 1)
    assert [policy.choose(JOB, loads, 0).replica_id for _ in range(6)] == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("name", BALANCING_POLICIES)
def test_equal_replicas_get_about_equal_shares(name: str):
    assert shares(name, replicas(1, 1), num_open=8) == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("name", BALANCING_POLICIES)
def test_one_that_leaves_the_pool_gets_nothing_and_may_come_back(name: str):
    loads = replicas(1, 1, 1)
    policy = make_policy(name, 0)
    left = {policy.choose(JOB, loads[:2], n).replica_id for n in range(40)}
    assert left == {0, 1}
    assert {policy.choose(JOB, loads, n).replica_id for n in range(40, 140)} == {0, 1, 2}


def test_round_robin_goes_on_where_it_was():
    policy, loads = make_policy("round-robin", 0), replicas(1, 1, 1)
    assert policy.choose(JOB, loads, 0).replica_id == 0
    assert policy.choose(JOB, loads[1:], 0).replica_id == 1
    assert policy.choose(JOB, loads, 0).replica_id == 2
    assert policy.choose(JOB, loads[:2], 0).replica_id == 0


def test_min_load_goes_by_pages_in_use_and_those_promised():
    policy, loads = make_policy("min-load", 0), replicas(1, 1)
    loads[0].stats = EngineStats(pages_total=1000, pages_free=100, pages_cached=800)
    loads[1].stats = EngineStats(pages_total=1000, pages_free=700, pages_cached=0)
    assert policy.choose(JOB, loads, 0).replica_id == 0  # what is only cached can be taken
    guard = Guard(loads[0], Job(16 * 300, page_size=16))
    assert policy.choose(JOB, loads, 0).replica_id == 1
    guard.prefilled(0.0)
    assert policy.choose(JOB, loads, 0).replica_id == 0


def test_min_latency_leaves_a_replica_that_became_slow_and_tries_it_again():
    policy, loads = make_policy("min-latency", 0), replicas(1, 1, 1)
    for load in loads:
        for n in range(50):
            load.latency.first_token(0.5 if load.replica_id == 2 else 0.05, 0.0, n * 0.1)
            load.latency.later_tokens(0.1 if load.replica_id == 2 else 0.01, 1, n * 0.1)
    chosen = Counter(policy.choose(JOB, loads, 5.0).replica_id for _ in range(300))
    assert chosen[2] == 0
    assert min(chosen[0], chosen[1]) > 100  # not all to the one that was fastest
    later = Counter(policy.choose(JOB, loads, 500.0).replica_id for _ in range(300))
    assert later[2] > 50  # what was seen so long ago counts for little


def test_power_of_two_avoids_the_busy_one():
    policy, loads = make_policy("power-of-two", 0), replicas(1, 1, 1)
    guards = [Guard(loads[0], JOB) for _ in range(10)]
    assert {policy.choose(JOB, loads, 0).replica_id for _ in range(50)} == {1, 2}
    for guard in guards:
        guard.release()


def names(text: str) -> tuple[bytes, ...]:
    return tuple(text[: n + 1].encode() for n in range(len(text)))


def test_cache_aware_goes_where_the_prefix_is():
    policy, loads = make_policy("cache-aware", 0), replicas(1, 1)
    loads[1].sketch.change(names("abcdef"), (), False)
    job = Job(16 * 7, 16, names("abcdefg"))
    assert {policy.choose(job, loads, 0).replica_id for _ in range(10)} == {1}


def test_cache_aware_leaves_the_prefix_when_the_queue_there_costs_more():
    policy, loads = make_policy("cache-aware", 0), replicas(1, 1)
    loads[1].sketch.change(names("abcdef"), (), False)
    job = Job(16 * 7, 16, names("abcdefg"))
    guards = [Guard(loads[1], Job(16 * 7, 16, names("other" + str(n)))) for n in range(2)]
    assert policy.choose(job, loads, 0).replica_id == 0
    for guard in guards:
        guard.release()
    assert policy.choose(job, loads, 0).replica_id == 1


@pytest.mark.parametrize("name", ["cache-aware", "min-latency"])
def test_no_request_of_a_burst_waits_for_a_row_while_another_replica_has_one(name: str):
    """The answers of one replica have all begun before any of the other's."""
    policy, loads, job = make_policy(name, 0), replicas(1, 1, num_rows=4), Job(150)
    for _ in range(8):
        chosen = policy.choose(job, loads, 0)
        guard = Guard(chosen, job)
        if chosen is loads[0]:
            guard.prefilled(0)
    assert [load.num_in_flight for load in loads] == [4, 4]


@pytest.mark.parametrize(
    ("prefix_len", "now_s", "chosen_id"), [(60, 0, 1), (30, 0, 0), (30, 0.5, 1)]
)
def test_a_cached_prefix_is_worth_as_much_waiting_for_a_row_as_it_saves(
    prefix_len: int, now_s: float, chosen_id: int
):
    """A page saves 2 x 16 ms. Four answers cost 0.64 s because they are there, and another 0.64 s
    less `now_s` until the first of them ends."""
    policy, loads = make_policy("cache-aware", 0), replicas(1, 1, num_rows=4)
    prefix = names("p" * prefix_len)
    loads[1].sketch.change(prefix, (), False)
    for _ in range(4):
        Guard(loads[1], JOB).prefilled(0)
    assert policy.choose(Job(16 * prefix_len, 16, prefix), loads, now_s).replica_id == chosen_id


def test_cache_aware_keeps_a_burst_of_one_prefix_together_before_the_replica_has_told_of_it():
    policy, loads = make_policy("cache-aware", 0), replicas(1, 1)
    prefix = names("p" * 40)
    jobs = [Job(16 * 41, 16, (*prefix, prefix[-1] + b"%d" % n)) for n in range(8)]
    chosen = []
    for job in jobs:
        chosen.append(policy.choose(job, loads, 0))
        Guard(chosen[-1], job)
    assert {load.replica_id for load in chosen[:4]} == {chosen[0].replica_id}


def test_cache_aware_spreads_forks_once_there_is_room_elsewhere_sooner():
    """Many branches of a short prefix: some go where it has to be computed again."""
    policy, loads = make_policy("cache-aware", 0), replicas(1, 1)
    loads[0].sketch.change(names("ab"), (), False)
    counts = Counter[int]()
    for _ in range(64):
        job = Job(48, 16, names("abc"))
        chosen = policy.choose(job, loads, 0)
        counts[chosen.replica_id] += 1
        Guard(chosen, job)
    assert min(counts.values()) > 20


def test_a_name_that_is_none():
    with pytest.raises(ConfigError, match="fastest"):
        make_policy("fastest", 0)


def test_every_policy_is_offered_and_every_offer_is_one():
    rng = random.Random(0)
    for name in BALANCING_POLICIES:
        assert make_policy(name, rng.randrange(100)).choose(JOB, replicas(1), 0).replica_id == 0
