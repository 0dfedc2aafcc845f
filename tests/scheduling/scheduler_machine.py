"""Every sequence of admit, hold, step, abort, preempt, flush and failure, against answers known
beforehand."""

from __future__ import annotations

from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jaxsgl.cache.eviction import POLICIES
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import Finish, SamplingParams
from jaxsgl.scheduling.holds import HOLD_SHARE
from jaxsgl.scheduling.policies import POLICY_NAMES
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.step import StepPlan, StepResult
from tests.fake_runner import EOS_ID, FakePendingStep, FakeRunner, expected_tokens, make_limits

MAX_IN_FLIGHT = 3


class SchedulerMachine(RuleBasedStateMachine):
    """Small pools and small alphabets, so that everything collides.

    After every rule the books are recounted; what each request was told is a prefix of its answer
    at all times, and all of it when it ends by itself.
    """

    scheduler_class: type[Scheduler] = Scheduler
    cache_class: type[KVCacheManager] = KVCacheManager

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        num_pages=st.integers(8, 24),
        num_slots=st.integers(1, 4),
        max_tokens=st.integers(4, 12),
        policy=st.sampled_from(POLICY_NAMES),
        mixed=st.booleans(),
        radix=st.booleans(),
        share=st.booleans(),
        chunked=st.booleans(),
        threshold=st.integers(0, 1),
        eviction=st.sampled_from(sorted(POLICIES)),
        quota=st.none() | st.integers(0, 6),
        fair=st.booleans(),
        tenant_quota=st.sampled_from([None, 0.0, 0.3, 0.6]),
        chain_len=st.sampled_from([1, 2, 5]),
    )
    def start(
        self,
        page_size,
        num_pages,
        num_slots,
        max_tokens,
        policy,
        mixed,
        radix,
        share,
        chunked,
        threshold,
        eviction,
        quota,
        fair,
        tenant_quota,
        chain_len,
    ):
        self.max_len = (num_pages - 1) * page_size
        self.radix = radix
        self.limits = make_limits(
            num_pages=num_pages,
            page_size=page_size,
            num_slots=num_slots,
            max_tokens=max_tokens if chunked else max(max_tokens, self.max_len),
            max_logits=num_slots,
            max_pages_per_row=num_pages - 1,
            chain_len=chain_len,
        )
        self.cache = self.cache_class(
            num_pages, page_size, radix=radix, eviction=eviction, default_quota=quota
        )
        self.scheduler = self.scheduler_class(
            self.limits,
            self.cache,
            Vocabulary([], (EOS_ID,)),
            SchedulingSettings(
                max_len=self.max_len,
                policy=policy,
                mixed_chunks=mixed and chunked,
                chunked_prefill=chunked,
                share_prefixes=share,
                preemption_threshold=threshold,
                fair=fair,
                tenant_quota=tenant_quota,
            ),
        )
        self.runner = FakeRunner(self.limits)
        self.in_flight: deque[FakePendingStep] = deque()
        self.answers: dict[str, list[int]] = {}
        self.wanted: dict[str, list[int]] = {}
        self.finishes: dict[str, Finish] = {}
        self.released: set[str] = set()
        self.now_s = 0.0
        self.wishes: dict[str, tuple[str, list[int], int]] = {}
        """Namespace, prompt and time of what is to be held when it has been computed."""
        self.held: dict[str, tuple[str, list[int], int, float | None]] = {}
        """The same of what is held, and when it ends; None until the scheduler is told the time."""
        self.num_given_up = 0

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=12),
        max_tokens=st.integers(1, 8),
        seed=st.integers(0, 2),
        priority=st.integers(0, 2),
        namespace=st.sampled_from(["", "other", "other/salt"]),
        timeout_s=st.none() | st.integers(1, 20),
    )
    def admit(self, prompt, max_tokens, seed, priority, namespace, timeout_s):
        prompt = prompt[: self.max_len - 1]
        request_id = str(len(self.answers))
        sampling = SamplingParams(max_tokens=max_tokens, seed=seed)
        deadline_s = None if timeout_s is None else self.now_s + timeout_s
        self.scheduler.add(
            request_id,
            prompt,
            sampling,
            namespace=namespace,
            tenant=namespace.partition("/")[0],
            priority=priority,
            deadline_s=deadline_s,
        )
        self.answers[request_id] = []
        num_tokens = min(max_tokens, self.max_len - len(prompt))
        self.wanted[request_id] = expected_tokens(prompt, num_tokens, seed=seed)

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=16),
        priority=st.integers(0, 2),
        namespace=st.sampled_from(["", "other", "other/salt"]),
        hold_s=st.integers(1, 12),
    )
    def hold(self, prompt, priority, namespace, hold_s):
        """A prompt is to be computed and kept."""
        prompt = prompt[: self.max_len - 1]
        request_id = str(len(self.answers))
        self.scheduler.add(
            request_id,
            prompt,
            SamplingParams(max_tokens=0, seed=0),
            namespace=namespace,
            tenant=namespace.partition("/")[0],
            priority=priority,
            hold_s=hold_s,
        )
        self.answers[request_id] = self.wanted[request_id] = []
        self.wishes[request_id] = namespace, prompt, hold_s

    @precondition(lambda self: self.wishes or self.held)
    @rule(data=st.data())
    def let_go(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.wishes.keys() | self.held.keys())))
        self.scheduler.let_go(request_id)
        self.unhold(request_id)

    def unhold(self, request_id: str) -> None:
        self.wishes.pop(request_id, None)
        self.held.pop(request_id, None)

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan_step()
        if plan is not None:
            self.in_flight.append(self.runner.dispatch(plan))
        return plan

    @precondition(lambda self: len(self.in_flight) < MAX_IN_FLIGHT)
    @rule()
    def step(self):
        self.plan()

    @precondition(lambda self: self.in_flight)
    @rule()
    def apply(self):
        result = self.in_flight.popleft().wait()
        assert isinstance(result, StepResult)
        self.scheduler.apply(result)

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.answers)))
        self.scheduler.abort(request_id, "gone")
        self.unhold(request_id)

    @rule()
    def flush(self):
        self.scheduler.flush_cache()
        self.held.clear()

    @precondition(lambda self: self.in_flight)
    @rule()
    def fail(self):
        self.in_flight.clear()
        self.runner.reset()
        self.scheduler.restart()
        self.held.clear()

    @rule(seconds=st.integers(1, 5))
    def tick(self, seconds):
        self.now_s += seconds
        self.scheduler.expire(self.now_s)
        for request_id, (namespace, prompt, hold_s, due_s) in list(self.held.items()):
            if due_s is None:
                self.held[request_id] = namespace, prompt, hold_s, self.now_s + hold_s
            elif due_s <= self.now_s:
                del self.held[request_id]

    @invariant()
    def books_add_up(self):
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check()
        self.collect()
        self.holds_hold()

    def holds_hold(self) -> None:
        """What is held is cached, and ended before its time only for want of pages."""
        stats = self.scheduler.stats()
        held = {request_id: self.held[request_id] for request_id in self.scheduler.holds}
        assert stats.holds == len(held)
        assert len(self.held) - len(held) == stats.holds_given_up - self.num_given_up
        self.held, self.num_given_up = held, stats.holds_given_up
        for namespace, prompt, _, _ in held.values():
            pages_len = len(prompt) // self.limits.page_size * self.limits.page_size
            cached_len = self.cache.match_len(namespace, prompt)
            assert cached_len == min(pages_len, len(prompt) - 1)

    def collect(self) -> None:
        outputs = self.scheduler.take_outputs()
        for row in outputs.rows:
            answer = self.answers[row.request_id]
            answer += row.token_ids
            assert row.request_id not in self.finishes, "told something after its end"
            assert answer == self.wanted[row.request_id][: len(answer)]
            if row.finish is not None:
                self.finishes[row.request_id] = row.finish
                if row.finish.kind in ("stop", "length"):
                    assert answer == self.wanted[row.request_id]
        for request_id in outputs.released:
            assert request_id not in self.released, "released twice"
            self.released.add(request_id)
            wish = self.wishes.pop(request_id, None)
            if wish is not None and self.finishes[request_id].kind == "length":
                num_pages = len(wish[1]) // self.limits.page_size
                most = int(HOLD_SHARE * (self.limits.num_pages - 1))
                if self.radix and 0 < num_pages <= most:
                    self.held[request_id] = *wish, None

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if self.plan() is None and not self.in_flight:
                break
            if self.in_flight:
                self.apply()
            self.books_add_up()
        assert self.scheduler.idle, "stuck"
        assert set(self.finishes) == set(self.answers) == self.released
        stats = self.scheduler.stats()
        assert stats.locks == stats.holds and stats.slots_free == stats.slots_total
        self.tick(1)
        self.tick(12)
        stats = self.scheduler.stats()
        assert stats.locks == stats.holds == 0 and self.scheduler.next_deadline_s is None
        assert stats.pages_free + stats.pages_cached == stats.pages_total
        self.scheduler.flush_cache()
        assert self.scheduler.stats().pages_free == stats.pages_total
