"""Random lives of a scheduler, each made from a seed alone, so that a failing one can be
replayed."""

from __future__ import annotations

import random
from collections import deque

from jaxsgl.cache.eviction import POLICIES
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling.policies import POLICY_NAMES
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from tests.fake_runner import EOS_ID, FakePendingStep, FakeRunner, expected_tokens, make_limits

NUM_EVENTS = 24


class Trace:
    """One life: admissions, steps up to three ahead, aborts, flushes, failures, passing deadlines.

    Raises AssertionError, SchedulingError or a cache error at the first thing that is wrong. Checks
    the books after every event if `check_always`, else when all is done.
    """

    def __init__(self, seed: int, scheduler_class: type[Scheduler] = Scheduler) -> None:
        self.random = rng = random.Random(seed)
        page_size = rng.choice([1, 2, 4])
        num_pages = rng.randint(8, 24)
        num_slots = rng.randint(1, 4)
        self.max_len = (num_pages - 1) * page_size
        chunked, max_tokens = rng.random() < 0.8, rng.randint(4, 12)
        limits = make_limits(
            num_pages=num_pages,
            page_size=page_size,
            num_slots=num_slots,
            max_tokens=max_tokens if chunked else max(max_tokens, self.max_len),
            max_logits=num_slots,
            max_pages_per_row=num_pages - 1,
            pack_rows=2 * (seed % 2),
            chain_len=(1, 2, 5)[seed // 2 % 3],
        )
        settings = SchedulingSettings(
            max_len=self.max_len,
            policy=rng.choice(POLICY_NAMES),
            mixed_chunks=chunked and rng.random() < 0.8,
            chunked_prefill=chunked,
            share_prefixes=rng.random() < 0.8,
            preemption_threshold=rng.randint(0, 1),
            fair=seed % 3 > 0,
            tenant_quota=(None, 0.2, 0.5)[seed // 3 % 3],
            seed=seed,
        )
        cache = KVCacheManager(
            num_pages,
            page_size,
            radix=rng.random() < 0.8,
            eviction=rng.choice(sorted(POLICIES)),
            default_quota=rng.choice([None, 0, 4]),
        )
        self.scheduler = scheduler_class(limits, cache, Vocabulary([], (EOS_ID,)), settings)
        self.runner = FakeRunner(limits)
        self.in_flight: deque[FakePendingStep] = deque()
        self.now_s = 0.0
        self.told: dict[str, list[int]] = {}
        self.wanted: dict[str, list[int]] = {}
        self.scores: dict[str, list[int | None]] = {}
        """Prompt tokens whose log-probability somebody has yet to be told; None for no such one."""
        self.ended: set[str] = set()
        self.released: set[str] = set()
        self.let_go_of: set[str] = set()

    def run(self, *, check_always: bool) -> None:
        events = [
            self.admit,
            self.hold,
            self.plan,
            self.apply,
            self.abort,
            self.let_go,
            self.flush,
            self.fail,
            self.tick,
        ]
        weights = [5, 1, 8, 8, 1, 0.5, 0.3, 0.4, 0.5]
        for event in self.random.choices(events, weights, k=NUM_EVENTS):
            event()
            self.collect()
            if check_always:
                self.scheduler.check()
        for _ in range(2000):
            if not self.plan() and not self.apply():
                break
            self.collect()
            if check_always:
                self.scheduler.check()
        self.assert_done()

    def admit(self) -> None:
        rng = self.random
        length = min(rng.randint(1, 12), self.max_len - 1)
        prompt = [rng.randint(1, 2) for _ in range(length)]
        sampling = SamplingParams(
            max_tokens=rng.randint(1, 8),
            seed=rng.randint(0, 2),
            prompt_logprobs=rng.random() < 0.15,
            prompt_logprobs_from=rng.randint(0, 9),
        )
        request_id = str(len(self.told))
        namespace = rng.choice(["", "other"])
        self.scheduler.add(
            request_id,
            prompt,
            sampling,
            namespace=namespace,
            tenant=namespace,
            priority=rng.randint(0, 2),
            deadline_s=self.now_s + rng.randint(1, 20) if rng.random() < 0.1 else None,
        )
        if sampling.prompt_logprobs:
            begin = min(max(1, sampling.prompt_logprobs_from), length)
            self.scores[request_id] = [None] * begin + prompt[begin:]
        num_tokens = min(sampling.max_tokens or 0, self.max_len - length)
        self.told[request_id] = []
        self.wanted[request_id] = expected_tokens(prompt, num_tokens, seed=sampling.seed or 0)

    def hold(self) -> None:
        rng = self.random
        prompt = [rng.randint(1, 2) for _ in range(min(rng.randint(1, 16), self.max_len - 1))]
        request_id, namespace = str(len(self.told)), rng.choice(["", "other"])
        self.scheduler.add(
            request_id,
            prompt,
            SamplingParams(max_tokens=0, seed=0),
            namespace=namespace,
            tenant=namespace,
            priority=rng.randint(0, 2),
            hold_s=rng.randint(1, 20),
        )
        self.told[request_id] = self.wanted[request_id] = []

    def let_go(self) -> None:
        if self.told:
            request_id = self.random.choice(sorted(self.told))
            self.let_go_of.add(request_id)
            self.scheduler.let_go(request_id)

    def plan(self) -> bool:
        if len(self.in_flight) == 3:
            return False
        plan = self.scheduler.plan_step()
        if plan is not None:
            self.in_flight.append(self.runner.dispatch(plan))
        return plan is not None

    def apply(self) -> bool:
        if not self.in_flight:
            return False
        self.scheduler.apply(self.in_flight.popleft().wait())
        return True

    def abort(self) -> None:
        if self.told:
            self.scheduler.abort(self.random.choice(sorted(self.told)), "gone")

    def flush(self) -> None:
        self.scheduler.flush_cache()

    def fail(self) -> None:
        self.in_flight.clear()
        self.runner.reset()
        self.scheduler.restart()

    def tick(self) -> None:
        self.now_s += self.random.randint(1, 5)
        self.scheduler.expire(self.now_s)

    def collect(self) -> None:
        outputs = self.scheduler.take_outputs()
        for row in outputs.rows:
            answer, wanted = self.told[row.request_id], self.wanted[row.request_id]
            answer += row.token_ids
            assert row.request_id not in self.ended, "told something after its end"
            if row.prompt_logprobs is not None:
                scored = [each and each.token_id for each in row.prompt_logprobs]
                wanted_scores = self.scores.pop(row.request_id)
                assert scored == wanted_scores[: len(scored)], "a prompt wrongly scored"
                assert len(scored) == len(wanted_scores) or row.finish is not None
            assert answer == wanted[: len(answer)], "a wrong token"
            if row.finish is not None:
                self.ended.add(row.request_id)
                if row.finish.kind in ("stop", "length"):
                    assert answer == wanted, "ended too early"
                    assert row.request_id not in self.scores, "a prompt not scored"
        for request_id in outputs.released:
            assert request_id not in self.released, "released twice"
            self.released.add(request_id)
        assert self.let_go_of.isdisjoint(self.scheduler.holds), "held for nobody"

    def assert_done(self) -> None:
        self.scheduler.check()
        assert self.scheduler.idle, "stuck"
        assert self.ended == set(self.told) == self.released
        self.scheduler.flush_cache()
        stats = self.scheduler.stats()
        assert stats.locks == 0 and stats.slots_free == stats.slots_total
        assert stats.pages_free == stats.pages_total
