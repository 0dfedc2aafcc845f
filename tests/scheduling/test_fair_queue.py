"""Tenants take turns, and what they run gives way beyond their quota."""

from __future__ import annotations

import pytest

from bench.key_isolation import Flood, isolation
from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling.fair_queue import GENERATED_WEIGHT, FairQueue
from jaxsgl.scheduling.policies import make_policy
from jaxsgl.scheduling.request import Request
from jaxsgl.scheduling.waiting_queue import MIN_OVERTAKEN
from tests.fake_runner import expected_tokens, make_limits
from tests.scheduling.test_scheduler import Answer, Bench, prompts


def fair_queue(policy: str = "fcfs") -> FairQueue:
    return FairQueue(make_policy(policy), lambda request: 0)


def request(arrival: int, tenant: str, num_tokens: int = 4, priority: int = 0) -> Request:
    return Request(
        f"{tenant}{arrival}",
        [1] * num_tokens,
        SamplingParams(max_tokens=8, seed=0),
        arrival=arrival,
        max_len=10_000,
        eos_token_ids=(),
        tenant=tenant,
        priority=priority,
    )


def serve(queue: FairQueue, num: int, generated: int = 0) -> list[str]:
    """Admit so many, each answered at once; whose they were."""
    tenants = []
    for _ in range(num):
        first = queue.in_order()[0]
        queue.charge_prompt(first.tenant, first.prompt_len)
        queue.admit(first)
        queue.charge_generated(first.tenant, generated)
        tenants.append(first.tenant)
    return tenants


def test_one_tenant_sees_the_policy_and_nothing_else():
    queue = fair_queue("priority")
    for arrival, priority in enumerate([0, 2, 1]):
        queue.add(request(arrival, "a", priority=priority))
    assert [r.arrival for r in queue.in_order()] == [1, 2, 0]


def test_whoever_comes_to_a_long_queue_is_next_but_one():
    queue = fair_queue()
    for arrival in range(1000):
        queue.add(request(arrival, "heavy"))
    serve(queue, 10)
    queue.add(request(1000, "light"))
    assert "light" in serve(queue, 2)
    assert len(queue) == 989 and queue.num_tenants == 1


def test_equal_tokens_not_equal_requests():
    queue = fair_queue()
    for arrival in range(400):
        queue.add(request(arrival, "long", 30) if arrival % 2 else request(arrival, "short", 10))
    tenants = serve(queue, 120)
    assert tenants.count("short") == pytest.approx(90, abs=2)


def test_generated_tokens_count_for_more():
    queue = fair_queue()
    for arrival in range(40):
        queue.add(request(arrival, "ab"[arrival % 2], 10))
    asked = queue.in_order()[0]
    queue.charge_generated(asked.tenant, 10)
    # The other tenant catches up first.
    assert len(set(serve(queue, GENERATED_WEIGHT))) == 1


def test_nobody_saves_up_by_asking_for_nothing():
    queue = fair_queue()
    queue.add(request(0, "late"))
    serve(queue, 1)
    for arrival in range(1, 101):
        queue.add(request(arrival, "early"))
    serve(queue, 50)
    for arrival in range(101, 151):
        queue.add(request(arrival, "late"))
    tenants = serve(queue, 40)
    assert tenants.count("late") == pytest.approx(20, abs=1)


def test_nobody_is_forgiven_by_leaving_for_a_moment():
    queue = fair_queue()
    for arrival in range(20):
        queue.add(request(arrival, "b"))
    queue.add(request(20, "a", 100))
    serve(queue, 2)  # both once, so that "a" is 96 tokens ahead
    queue.add(request(21, "a"))
    assert set(serve(queue, 18)) == {"b"}


def test_a_tenant_overtaken_by_others_ages_no_sooner():
    queue = fair_queue()
    for arrival in range(2 * MIN_OVERTAKEN):
        queue.add(request(arrival, "heavy", 1000))
    serve(queue, 1)
    for arrival in range(100, 500):
        queue.add(request(arrival, "light", 1))
    assert serve(queue, 401).count("heavy") == 1


def test_who_does_not_wait_cannot_be_removed():
    queue = fair_queue()
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove(request(0, "a"))


class Tenants(Bench):
    """Answers of eight tokens of a pool of 48 pages."""

    def __init__(self, **settings) -> None:
        limits = make_limits(num_pages=49, page_size=4, num_slots=4, max_tokens=64)
        super().__init__(limits, **settings)

    def ask(self, request_id: str, tenant: str, prompt: list[int], num: int = 8, **fields) -> None:
        sampling = SamplingParams(max_tokens=num, seed=0, ignore_eos=True)
        self.scheduler.add(request_id, prompt, sampling, tenant=tenant, namespace=tenant, **fields)
        self.answers[request_id] = Answer()

    def steps_until_first_token(self, request_id: str) -> int:
        for num_steps in range(1, 1000):
            self.step()
            if self.answers[request_id].token_ids:
                return num_steps
        raise AssertionError(f"{request_id} starves")


@pytest.mark.parametrize("fair", [False, True])
def test_a_light_tenant_waits_for_a_place_and_not_for_the_queue(fair: bool):
    bench = Tenants(fair=fair)
    many = prompts(100)
    for i, prompt in enumerate(many):
        bench.ask(f"heavy{i}", "heavy", prompt)
    bench.step()
    bench.ask("light", "light", [1, 2, 3])
    num_steps = bench.steps_until_first_token("light")
    assert num_steps < 25 if fair else num_steps > 150
    for i, prompt in enumerate(many):
        answer = bench.run()[f"heavy{i}"]
        assert answer.token_ids == expected_tokens(prompt, 8, ignore_eos=True)


def running(bench: Bench) -> list[str]:
    return [r.request_id for r in bench.scheduler._places.running]


@pytest.mark.parametrize("quota", [None, 0.5])
def test_beyond_its_quota_a_tenant_gives_way_at_once(quota: float | None):
    bench = Tenants(tenant_quota=quota)
    many = prompts(4)
    for i, prompt in enumerate(many):
        bench.ask(f"heavy{i}", "heavy", prompt, 30)
    while len(running(bench)) < 4:
        bench.step()
    bench.ask("light", "light", [1, 2, 3])
    num_steps = bench.steps_until_first_token("light")
    assert num_steps > 20 if quota is None else num_steps < 6
    assert ("heavy0" in running(bench)) == (quota is not None)
    answers = bench.run()
    for i, prompt in enumerate(many):
        assert answers[f"heavy{i}"].token_ids == expected_tokens(prompt, 30, ignore_eos=True)
    assert bench.scheduler.stats().requests_retracted == (0 if quota is None else 1)


def test_a_tenant_alone_has_no_quota():
    bench = Tenants(tenant_quota=0.25)
    for i, prompt in enumerate(prompts(8)):
        bench.ask(str(i), "only", prompt)
    bench.step()
    assert len(running(bench)) == 4
    bench.run()
    assert bench.scheduler.stats().requests_retracted == 0


def test_a_request_larger_than_its_quota_still_ends():
    """The others come without a pause, and it is its tenant's only one."""
    bench = Tenants(tenant_quota=0.25)
    bench.ask("large", "large", prompts(1, 60)[0], 60)
    for i, prompt in enumerate(prompts(60, 8, seed=1)):
        bench.ask(f"small{i}", f"tenant{i % 3}", prompt)
    for _ in range(400):
        bench.step()
    assert bench.answers["large"].finish is not None
    bench.run()


def test_urgency_is_nothing_to_other_tenants():
    bench = Tenants(policy="priority")
    for i, prompt in enumerate(prompts(4)):
        bench.ask(str(i), "calm", prompt, 30)
    while len(running(bench)) < 4:
        bench.step()
    bench.ask("urgent", "loud", [1, 2, 3], priority=9)
    bench.ask("4", "calm", [1, 2], priority=9)
    bench.run()
    # Only "4" took a place from its own.
    assert bench.scheduler.stats().requests_retracted <= 1


SMALL = Flood(num_heavy=150, pool_tokens=20_000, max_rows=32, answer_len=128)


def test_isolation_simulated():
    """The wait of a light key next to a heavy one, and what it costs."""
    one_queue = isolation(SMALL, fair=False, quota=None)
    fair = isolation(SMALL, fair=True, quota=None)
    quota = isolation(SMALL, fair=True, quota=0.5)
    assert one_queue.light_worst_s > 10 * fair.light_worst_s
    assert fair.light_worst_s < 0.5
    assert quota.light_median_s < 0.5 * fair.light_median_s
    for each in (fair, quota):
        assert each.throughput > 0.97 * one_queue.throughput
        assert each.heavy_worst_s < 1.1 * one_queue.heavy_worst_s + 1
