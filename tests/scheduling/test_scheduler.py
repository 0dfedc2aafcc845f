"""The scheduler against a fake runner whose draws can be worked out by hand."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest

from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import Finish, SamplingParams
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.step import StepLimits, StepResult
from tests.fake_runner import (
    EOS_ID,
    VOCAB_SIZE,
    FakeRunner,
    expected_tokens,
    make_limits,
)

TOKEN_BYTES = [b""] + [bytes([64 + i]) for i in range(1, VOCAB_SIZE)]


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    data: bytes = b""
    cached_tokens: int = 0
    finish: Finish | None = None
    prompt_logprobs: list | None = None
    logprobs: list = field(default_factory=list)


class Bench:
    """Scheduler, cache and fake runner, driven with results that come `depth` steps late."""

    def __init__(
        self,
        limits: StepLimits | None = None,
        *,
        depth: int = 1,
        radix: bool = True,
        scheduler_class: type[Scheduler] = Scheduler,
        **settings,
    ):
        self.limits = limits or make_limits()
        self.runner = FakeRunner(self.limits)
        self.cache = KVCacheManager(self.limits.num_pages, self.limits.page_size, radix=radix)
        max_len = min(
            self.limits.max_context_len, (self.limits.num_pages - 1) * self.limits.page_size
        )
        self.scheduler = scheduler_class(
            self.limits,
            self.cache,
            Vocabulary(TOKEN_BYTES, (EOS_ID,)),
            SchedulingSettings(max_len=max_len, **settings),
        )
        self.depth = depth
        self.in_flight: deque = deque()
        self.answers: dict[str, Answer] = {}
        self.released: list[str] = []

    def add(
        self, request_id: str, prompt: list[int], *, hold_s: float | None = None, **sampling
    ) -> None:
        params = {"temperature": 0.0, "seed": 0, **sampling}
        self.scheduler.add(request_id, prompt, SamplingParams(**params), hold_s=hold_s)
        self.answers[request_id] = Answer()

    def step(self) -> bool:
        """Plan once and apply what is due. False if there was nothing to do."""
        plan = self.scheduler.plan_step()
        busy = plan is not None or bool(self.in_flight)
        if plan is not None:
            self.in_flight.append(self.runner.dispatch(plan))
        if self.in_flight and (plan is None or len(self.in_flight) > self.depth):
            self.scheduler.apply(self.in_flight.popleft().wait())
        self.scheduler.check()
        self.collect()
        return busy

    def collect(self) -> None:
        outputs = self.scheduler.take_outputs()
        for row in outputs.rows:
            answer = self.answers[row.request_id]
            answer.token_ids += row.token_ids
            answer.data += row.data
            answer.cached_tokens = row.cached_tokens
            answer.finish = row.finish
            answer.logprobs += row.logprobs or []
            answer.prompt_logprobs = row.prompt_logprobs or answer.prompt_logprobs
        self.released += outputs.released

    def run(self) -> dict[str, Answer]:
        while self.step():
            pass
        self.assert_idle()
        return self.answers

    def assert_idle(self) -> None:
        stats = self.scheduler.stats()
        assert self.scheduler.idle
        assert stats.locks == stats.holds and stats.slots_free == stats.slots_total
        if not stats.holds:
            assert stats.pages_free + stats.pages_cached == stats.pages_total
        assert sorted(self.released) == sorted(self.answers)


def prompts(count: int, length: int = 10, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCAB_SIZE, length).tolist() for _ in range(count)]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("radix", [True, False])
@pytest.mark.parametrize("max_tokens", [5, 32])
def test_answers_do_not_depend_on_batch_chunk_or_overlap(depth, radix, max_tokens):
    bench = Bench(make_limits(max_tokens=max_tokens), depth=depth, radix=radix)
    many = prompts(20, 23)
    for i, prompt in enumerate(many):
        bench.add(str(i), prompt, max_tokens=12, seed=i)
    answers = bench.run()
    for i, prompt in enumerate(many):
        want = expected_tokens(prompt, 12, seed=i)
        assert answers[str(i)].token_ids == want
        kind = "stop" if want[-1] == EOS_ID else "length"
        assert answers[str(i)].finish.kind == kind


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_pool_too_small_for_all_retracts_and_still_answers_everything(depth):
    bench = Bench(make_limits(num_pages=49), depth=depth)
    many = prompts(8, 6)
    for i, prompt in enumerate(many):
        bench.add(str(i), prompt, max_tokens=40, ignore_eos=True)
    answers = bench.run()
    assert bench.scheduler.stats().requests_retracted > 0
    for i, prompt in enumerate(many):
        assert answers[str(i)].token_ids == expected_tokens(prompt, 40, ignore_eos=True)


def test_a_second_equal_prompt_reuses_all_but_the_last_token():
    bench = Bench()
    (prompt,) = prompts(1, 17)
    bench.add("a", prompt, max_tokens=3)
    bench.run()
    bench.add("b", prompt, max_tokens=3)
    answers = bench.run()
    assert answers["a"].cached_tokens == 0
    assert answers["b"].cached_tokens == 16
    assert answers["b"].token_ids == answers["a"].token_ids


def test_the_answer_is_cached_for_the_next_turn():
    bench = Bench()
    (prompt,) = prompts(1, 9)
    bench.add("a", prompt, max_tokens=8, ignore_eos=True)
    answer = bench.run()["a"].token_ids
    bench.add("b", prompt + answer + [5, 6], max_tokens=2)
    # 17 tokens, the last of which was drawn and never computed: 16 have KV.
    assert bench.run()["b"].cached_tokens == 16


def test_no_step_is_spent_on_a_token_after_the_last():
    bench = Bench(depth=1)
    bench.add("a", prompts(1, 4)[0], max_tokens=5, ignore_eos=True)
    bench.run()
    assert len(bench.runner.plans) == 5


@pytest.mark.parametrize("steps_before", range(8))
def test_abort_at_any_step_gives_everything_back(steps_before):
    bench = Bench(make_limits(max_tokens=8), depth=1)
    for i, prompt in enumerate(prompts(4, 20)):
        bench.add(str(i), prompt, max_tokens=30, ignore_eos=True)
    for _ in range(steps_before):
        bench.step()
    for i in range(4):
        bench.scheduler.abort(str(i), "the client went away")
    answers = bench.run()
    assert {a.finish.kind for a in answers.values()} == {"abort"}
    (prompt,) = prompts(1, 20, seed=9)
    bench.add("next", prompt, max_tokens=4)
    assert bench.run()["next"].token_ids == expected_tokens(prompt, 4)


def test_abort_of_unknown_and_of_ended_requests_does_nothing():
    bench = Bench()
    bench.scheduler.abort("nobody", "")
    bench.add("a", [1, 2, 3], max_tokens=2)
    bench.run()
    bench.scheduler.abort("a", "")
    assert bench.scheduler.take_outputs().rows == []


def test_stop_string_ends_the_answer_before_it():
    (prompt,) = prompts(1, 8)
    text = b"".join(TOKEN_BYTES[t] for t in expected_tokens(prompt, 10, ignore_eos=True))
    stop = text[4:6].decode()
    bench = Bench()
    bench.add("a", prompt, max_tokens=10, stop=(stop,), ignore_eos=True)
    answer = bench.run()["a"]
    assert answer.data == text[: text.index(stop.encode())]
    assert answer.finish == Finish("stop", matched=stop)


def test_stop_token_ends_the_answer_and_has_no_text():
    (prompt,) = prompts(1, 8)
    want = expected_tokens(prompt, 10, ignore_eos=True)
    bench = Bench()
    bench.add("a", prompt, max_tokens=10, stop_token_ids=(want[3],), ignore_eos=True)
    answer = bench.run()["a"]
    cut = want.index(want[3])
    assert answer.token_ids == want[: cut + 1]
    assert answer.data == b"".join(TOKEN_BYTES[t] for t in want[:cut])
    assert answer.finish == Finish("stop", matched=want[3])


def test_numbers_that_are_not_finite_end_that_request_only():
    bench = Bench()
    for i, prompt in enumerate(prompts(3, 8)):
        bench.add(str(i), prompt, max_tokens=6, ignore_eos=True)
    bench.runner.nan_slots = {1}
    answers = bench.run()
    assert [answers[str(i)].finish.kind for i in range(3)] == ["length", "error", "length"]


def test_a_failed_step_loses_no_token():
    bench = Bench(depth=1)
    many = prompts(5, 11)
    for i, prompt in enumerate(many):
        bench.add(str(i), prompt, max_tokens=20, ignore_eos=True)
    for _ in range(6):
        bench.step()
    bench.in_flight.clear()
    bench.runner.reset()
    bench.scheduler.restart()
    bench.scheduler.check()
    answers = bench.run()
    for i, prompt in enumerate(many):
        assert answers[str(i)].token_ids == expected_tokens(prompt, 20, ignore_eos=True)


def test_a_request_present_at_every_failure_is_given_up():
    bench = Bench(depth=0)
    bench.add("a", [1, 2, 3], max_tokens=5)
    for _ in range(3):
        bench.scheduler.plan_step()
        bench.scheduler.restart()
    answers = bench.run()
    assert answers["a"].finish.kind == "error"


def test_prompt_logprobs_cover_every_prompt_token_whatever_is_cached():
    bench = Bench(make_limits(max_logits=8, max_tokens=32))
    (prompt,) = prompts(1, 21)
    bench.add("warm", prompt, max_tokens=2)
    bench.run()
    bench.add("a", prompt, max_tokens=2, prompt_logprobs=True, logprobs=2, ignore_eos=True)
    answer = bench.run()["a"]
    assert answer.cached_tokens == 0
    assert answer.prompt_logprobs[0] is None
    assert [p.token_id for p in answer.prompt_logprobs[1:]] == prompt[1:]
    assert len(answer.logprobs) == 2 and len(answer.logprobs[0].top) == 2


@pytest.mark.parametrize("begin", [1, 13, 20, 99])
@pytest.mark.parametrize("is_cached", [True, False])
def test_prompt_logprobs_from_some_token_on_leave_the_rest_to_the_cache(begin, is_cached):
    bench = Bench(make_limits(max_logits=8, max_tokens=32))
    (prompt,) = prompts(1, 21)
    if is_cached:
        bench.add("warm", prompt, max_tokens=2)
        bench.run()
    bench.add("a", prompt, max_tokens=2, prompt_logprobs=True, prompt_logprobs_from=begin)
    answer = bench.run()["a"]
    page_size = bench.limits.page_size
    num_reusable = min(begin, len(prompt)) - 1
    if begin < len(prompt):
        assert answer.cached_tokens == is_cached * (num_reusable // page_size * page_size)
    else:  # nothing is scored: the prompt is like any other
        assert (answer.cached_tokens > 0) == is_cached
    assert answer.prompt_logprobs[:begin] == [None] * min(begin, len(prompt))
    assert [p.token_id for p in answer.prompt_logprobs[begin:]] == prompt[begin:]


@pytest.mark.parametrize("num_steps", range(1, 9))
def test_a_retracted_prompt_is_scored_once(num_steps):
    """A part of it is computed again, because only whole pages are cached."""
    bench = Bench(make_limits(num_slots=1, max_tokens=5), policy="priority")
    low, high = prompts(2, 26)
    bench.add("low", low, max_tokens=2, prompt_logprobs=True, ignore_eos=True)
    for _ in range(num_steps):
        bench.step()
    bench.scheduler.add("high", high, SamplingParams(max_tokens=4, seed=0), priority=5)
    bench.answers["high"] = Answer()
    answer = bench.run()["low"]
    assert bench.scheduler.stats().requests_retracted == (num_steps < 8)
    assert [p.token_id for p in answer.prompt_logprobs[1:]] == low[1:]


def test_what_cannot_be_served_is_refused():
    bench = Bench()
    sampling = SamplingParams(seed=0)
    bench.scheduler.add("a", [1], sampling)
    with pytest.raises(ValueError, match="in use"):
        bench.scheduler.add("a", [1], sampling)
    for bad in ([], [1] * 10_000):
        with pytest.raises(ValueError, match="prompt"):
            bench.scheduler.add("b", bad, sampling)


def test_a_result_out_of_order_is_a_defect():
    bench = Bench()
    bench.add("a", [1, 2], max_tokens=3)
    plan = bench.scheduler.plan_step()
    wrong = StepResult(plan.step_id + 1, np.zeros(1, np.int32), np.ones(1, bool))
    with pytest.raises(Exception, match="applied before"):
        bench.scheduler.apply(wrong)


def test_of_many_alike_one_computes_and_the_rest_reuse():
    bench = Bench(make_limits(num_pages=200, max_tokens=64, max_pages_per_row=40))
    (shared,) = prompts(1, 60)
    for i in range(6):
        bench.add(str(i), [*shared, i + 1], max_tokens=3, ignore_eos=True)
    answers = bench.run()
    assert answers["0"].cached_tokens == 0
    assert [answers[str(i)].cached_tokens for i in range(1, 6)] == [60] * 5
    assert answers["3"].token_ids == expected_tokens([*shared, 4], 3, ignore_eos=True)


def test_the_peak_of_the_pages_held_counts_shared_pages_once():
    (shared,) = prompts(1, 60)
    peaks: list[int] = []
    for num_alike in (1, 4):
        bench = Bench(make_limits(num_pages=200, max_tokens=64, max_pages_per_row=40))
        for i in range(num_alike):
            bench.add(str(i), [*shared, i + 1], max_tokens=20, ignore_eos=True)
        bench.run()
        peaks.append(bench.scheduler.stats().pages_held_peak)
    # 15 whole pages are shared; the tokens from the 61st to the 80th are each request's own.
    assert peaks == [15 + 5, 15 + 4 * 5]


def test_without_sharing_all_compute_the_same():
    bench = Bench(
        make_limits(num_pages=200, max_tokens=256, max_pages_per_row=40), share_prefixes=False
    )
    (shared,) = prompts(1, 60)
    for i in range(3):
        bench.add(str(i), [*shared, i + 1], max_tokens=3)
    assert [a.cached_tokens for a in bench.run().values()] == [0, 0, 0]


def test_the_urgent_take_the_place_of_the_less_urgent():
    bench = Bench(make_limits(num_slots=2), policy="priority")
    low = prompts(2, 8)
    for i, prompt in enumerate(low):
        bench.add(f"low{i}", prompt, max_tokens=30, ignore_eos=True)
    for _ in range(4):
        bench.step()
    bench.scheduler.add("high", [7] * 8, SamplingParams(max_tokens=4, seed=0), priority=5)
    bench.answers["high"] = Answer()
    order: list[str] = []
    while bench.step():
        order += [r for r, a in bench.answers.items() if a.finish and r not in order]
    bench.assert_idle()
    assert order[0] == "high"
    assert bench.scheduler.stats().requests_retracted == 1
    for i, prompt in enumerate(low):
        assert bench.answers[f"low{i}"].token_ids == expected_tokens(prompt, 30, ignore_eos=True)


def test_a_small_difference_in_priority_preempts_nobody_below_the_threshold():
    bench = Bench(make_limits(num_slots=1), policy="priority", preemption_threshold=5)
    bench.add("low", prompts(1, 8)[0], max_tokens=30, ignore_eos=True)
    for _ in range(4):
        bench.step()
    bench.scheduler.add("high", [7] * 8, SamplingParams(max_tokens=4, seed=0), priority=5)
    bench.answers["high"] = Answer()
    bench.run()
    assert bench.scheduler.stats().requests_retracted == 0


def test_a_deadline_ends_a_request_wherever_it_is():
    bench = Bench(make_limits(num_slots=1))
    for name in ("running", "waiting"):
        bench.scheduler.add(
            name, [1, 2, 3], SamplingParams(max_tokens=50, seed=0, ignore_eos=True), deadline_s=10.0
        )
        bench.answers[name] = Answer()
    bench.step()
    bench.scheduler.expire(9.9)
    bench.step()
    assert all(a.finish is None for a in bench.answers.values())
    bench.scheduler.expire(10.0)
    answers = bench.run()
    assert {a.finish.kind for a in answers.values()} == {"deadline"}


def test_prefill_first_never_mixes_prompts_with_single_tokens():
    bench = Bench(make_limits(max_tokens=16), mixed_chunks=False)
    many = prompts(12, 23)
    for i, prompt in enumerate(many):
        bench.add(str(i), prompt, max_tokens=9, ignore_eos=True)
    answers = bench.run()
    for plan in bench.runner.plans:
        draws = [n for n in np.diff(plan.q_start) if n == 1]
        assert plan.mode == "decode" or len(draws) < plan.num_rows
    for i, prompt in enumerate(many):
        assert answers[str(i)].token_ids == expected_tokens(prompt, 9, ignore_eos=True)


def test_without_chunks_every_prompt_is_one_row_of_one_step():
    limits = make_limits(max_tokens=64, max_pages_per_row=16)
    bench = Bench(limits, chunked_prefill=False, mixed_chunks=False, share_prefixes=False)
    for i, prompt in enumerate(prompts(6, 40)):
        bench.add(str(i), prompt, max_tokens=3, ignore_eos=True)
    bench.run()
    prefills = [n for plan in bench.runner.plans for n in np.diff(plan.q_start) if n > 1]
    assert prefills == [40] * 6


@pytest.mark.parametrize("depth", [1, 2])
def test_no_draws_commit_the_prompt(depth):
    bench = Bench(depth=depth)
    prompt = list(range(1, 20))
    bench.add("a", prompt, max_tokens=0)
    bench.run()
    answer = bench.answers["a"]
    assert (answer.token_ids, answer.data, answer.finish) == ([], b"", Finish("length"))
    bench.add("b", prompt, max_tokens=3, ignore_eos=True)
    bench.run()
    page_size = bench.limits.page_size
    assert bench.answers["b"].cached_tokens == len(prompt) // page_size * page_size
    assert bench.answers["b"].token_ids == expected_tokens(prompt, 3, ignore_eos=True)


def test_no_draws_and_the_prompt_scored():
    bench = Bench()
    prompt = list(range(1, 20))
    bench.add("a", prompt, max_tokens=0, prompt_logprobs=True)
    bench.run()
    answer = bench.answers["a"]
    assert answer.token_ids == [] and answer.finish == Finish("length")
    assert [entry.token_id for entry in answer.prompt_logprobs[1:]] == prompt[1:]
