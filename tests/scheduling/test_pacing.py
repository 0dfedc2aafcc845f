"""Steps with decoding rows keep `--max-itl-ms`, and what that costs."""

from __future__ import annotations

import functools
import random

import pytest

from bench.itl_promise import COST, closed_loop, long_prompt, simulate
from jaxsgl.scheduling.step_costs import StepCosts, StepWork, attending
from tests.fake_runner import expected_tokens, make_limits
from tests.scheduling.test_scheduler import Bench

SIZES = (32, 128, 512, 2048)

SIMULATED = 0.9
"""Of a promise is left to the steps: clients of a real server see up to a tenth more."""


def cost_s(work: StepWork, per_pair_s: float = 2e-9, per_key_s: float = 3e-8) -> float:
    padded = next(size for size in SIZES if size >= work.num_tokens)
    attention_s = per_pair_s * work.num_pairs + per_key_s * work.num_keys
    return 0.008 + 30e-6 * padded + attention_s


def some_work(rng: random.Random) -> StepWork:
    num_tokens = rng.randint(1, SIZES[-1])
    return StepWork(num_tokens, num_tokens * rng.randint(1, 30_000), rng.randint(0, 300_000))


def learned(num_steps: int = 200, seed: int = 0) -> StepCosts:
    costs, rng = StepCosts(SIZES), random.Random(seed)
    for _ in range(num_steps):
        work = some_work(rng)
        costs.observe(work, cost_s(work) * rng.uniform(0.98, 1.02))
    return costs


def test_costs_are_learned():
    costs, rng = learned(), random.Random(1)
    for _ in range(50):
        work = some_work(rng)
        assert costs.expect_s(work) == pytest.approx(cost_s(work), rel=0.1)


def test_costs_are_learned_again():
    costs, rng = learned(), random.Random(2)
    for _ in range(300):
        work = some_work(rng)
        costs.observe(work, cost_s(work, per_pair_s=6e-9))
    assert costs.pair_s == pytest.approx(6e-9, rel=0.1)


def test_a_hiccup_is_soon_forgotten():
    costs, rng = learned(), random.Random(3)
    costs.observe(StepWork(2048, 10_000, 10_000), 60.0)
    for _ in range(60):
        work = some_work(rng)
        costs.observe(work, cost_s(work))
    work = StepWork(2048, 10_000, 10_000)
    assert costs.expect_s(work) == pytest.approx(cost_s(work), rel=0.1)


def test_what_was_not_seen():
    costs = StepCosts(SIZES)
    assert costs.size_s(0) is None
    costs.observe(StepWork(20, 0, 0), 0.01)
    assert [costs.size_s(i) for i in range(4)] == [0.01, 0.02, None, None]
    costs.observe(StepWork(2000, 0, 0), 0.07)
    assert costs.size_s(1) == pytest.approx(0.01 + 0.06 * 96 / 2016)
    for _ in range(1000):
        costs.observe(StepWork(20, 0, 0), 0.01)
    assert costs.size_s(3) is None  # perhaps it is better by now


@pytest.mark.parametrize("context_len", [0, 1, 100, 32_000])
def test_attention_bounds_chunks(context_len: int):
    for chunk_len in (0, 1, 17, 4000):
        num_pairs = sum(range(context_len + 1, context_len + chunk_len + 1))
        assert attending(num_pairs, context_len) == chunk_len
        assert attending(num_pairs - 1, context_len) < max(1, chunk_len)


def test_a_long_prompt_keeps_the_promise_and_would_not_without():
    free, bound = simulate(long_prompt, None), simulate(long_prompt, 80)
    assert free.longest_ms > 3 * 80
    assert bound.longest_ms <= SIMULATED * 80
    assert bound.tokens_per_s >= 0.95 * free.tokens_per_s
    assert bound.long_wait_s <= 1.5 * free.long_wait_s


def test_throughput_stays_near_its_best():
    load = functools.partial(closed_loop, num_requests=192, num_at_once=64)
    free, bound = simulate(load, None), simulate(load, 80)
    assert free.p99_ms > 80
    assert bound.longest_ms <= SIMULATED * 80
    assert bound.tokens_per_s >= 0.9 * free.tokens_per_s


def test_a_promise_that_cannot_be_kept_starves_nobody():
    assert simulate(long_prompt, 1e3 * COST.fixed_s / 2).long_wait_s > 0


class Paced(Bench):
    """Steps seem to take as long as a hash says."""

    def __init__(self, seed: int, **settings):
        super().__init__(make_limits(mixed_sizes=(8, 16, 32)), max_itl_s=0.05, **settings)
        self._rng = random.Random(seed)
        apply = self.scheduler.apply
        self.scheduler.apply = lambda result: apply(result, self._rng.uniform(0, 0.2))


@pytest.mark.parametrize("seed", range(3))
def test_answers_stay_what_they_are(seed: int):
    bench, rng = Paced(seed), random.Random(seed)
    prompts = [[rng.randint(1, 9) for _ in range(rng.randint(1, 20))] for _ in range(6)]
    for i, prompt in enumerate(prompts):
        bench.add(str(i), prompt, max_tokens=8, ignore_eos=True)
        bench.step()
    while bench.step():
        pass
    for i, prompt in enumerate(prompts):
        assert bench.answers[str(i)].token_ids == expected_tokens(prompt, 8, ignore_eos=True)


@pytest.mark.parametrize(
    ("prompt_lens", "steps"),
    [
        ([1024], [1024]),
        ([1100], [1024, 76]),
        ([1700], [1700]),  # to wait for the next step would cost more than the padding
        ([700, 400], [1024, 76]),
        ([530], [512, 18]),
        ([300], [300]),
        ([2100], [2048, 52]),  # no more fit anyway
    ],
)
def test_steps_are_not_mostly_padding(prompt_lens: list[int], steps: list[int]):
    limits = make_limits(
        num_pages=1024, max_tokens=2048, max_pages_per_row=1000, mixed_sizes=(256, 512, 1024, 2048)
    )
    bench = Bench(limits, depth=0, radix=False)
    for i, prompt_len in enumerate(prompt_lens):
        bench.add(str(i), [1 + i] * prompt_len, max_tokens=2, ignore_eos=True)
    plans: list[int] = []
    dispatch = bench.runner.dispatch
    bench.runner.dispatch = lambda plan: plans.append(plan.num_tokens) or dispatch(plan)
    while bench.step():
        pass
    # A prompt that ended in the first step has its second token in the next one.
    num_ones = len(prompt_lens) - 1
    assert plans[: len(steps)] == [steps[0], *(num_tokens + num_ones for num_tokens in steps[1:])]
    for i, prompt_len in enumerate(prompt_lens):
        expected = expected_tokens([1 + i] * prompt_len, 2, ignore_eos=True)
        assert bench.answers[str(i)].token_ids == expected
