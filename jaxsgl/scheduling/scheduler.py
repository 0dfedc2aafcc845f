"""Decides what runs in each step, and what the step's draws mean for the requests.

A synchronous state machine without device, event loop or clock: `plan_step` returns the next
StepPlan, the caller runs it, `apply` takes its StepResult. Plans may run ahead of results by any
number of steps. What a request holds (slot, pages, lock) is given back only when the last
dispatched step that mentions it has been applied, whichever way the request ended.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.cache.prefix_journal import JournalEntry, PrefixJournal
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.interface import EngineStats, Finish, SamplingParams
from jaxsgl.scheduling.chains import Chains
from jaxsgl.scheduling.fair_queue import FairQueue
from jaxsgl.scheduling.holds import Holds
from jaxsgl.scheduling.outputs import RowOutput, SchedulerOutputs
from jaxsgl.scheduling.pacing import Pace
from jaxsgl.scheduling.placements import Placements
from jaxsgl.scheduling.plan_builder import PlanBuilder
from jaxsgl.scheduling.planner import Planner
from jaxsgl.scheduling.policies import make_policy
from jaxsgl.scheduling.request import Request, Status
from jaxsgl.scheduling.results import StepReader, TokenTexts, held_text, resume, row_output
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.scheduling.shared_prefixes import PrefixSharing
from jaxsgl.scheduling.step_costs import StepWork
from jaxsgl.step import StepLimits, StepPlan, StepResult

MAX_STEP_FAILURES = 2
"""Failed steps that a request may have been part of before it is given up."""


class SchedulingError(Exception):
    """The books do not add up: a defect of the engine, never of a request."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the scheduler must know of the tokens it hands out."""

    token_bytes: list[bytes]
    """Text of each token id; b"" for control tokens. Empty where no tokenizer is loaded."""
    eos_token_ids: tuple[int, ...]
    control_texts: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    """How control tokens are written."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    plan: StepPlan
    requests: list[Request]
    work: StepWork


class Scheduler:
    """All requests of one replica.

    `add` queues, `abort` ends at any moment, `plan_step` and `apply` alternate as the caller likes
    as long as results are applied in the order of their plans. `take_outputs` collects what all of
    them brought.
    """

    def __init__(
        self,
        limits: StepLimits,
        cache: KVCacheManager,
        vocabulary: Vocabulary,
        settings: SchedulingSettings,
    ) -> None:
        self._limits = limits
        self._cache = cache
        self._vocabulary = vocabulary
        self._texts = TokenTexts(vocabulary.token_bytes, vocabulary.control_texts)
        self._settings = settings
        self._requests: dict[str, Request] = {}
        self._timed: dict[str, Request] = {}
        """Those of them that have a deadline."""
        self._compiling: dict[str, Request] = {}
        """Those of them whose grammar is being compiled."""
        self._waiting = FairQueue(make_policy(settings.policy, settings.seed), self._match_len)
        self._places = Placements(cache, limits.num_slots)
        self._holds = Holds(cache, limits.num_pages)
        self._sharing = PrefixSharing(limits.page_size, limits.pack_rows)
        self._pace = None if settings.max_itl_s is None else Pace(settings.max_itl_s, limits)
        self._chains = Chains(limits, self._sharing, settings.max_itl_s)
        self._planner = Planner(
            cache,
            self._places,
            self._holds,
            self._waiting,
            settings,
            limits=limits,
            pace=self._pace,
            chains=self._chains,
            retract=self._retract,
            admitted=self._count_admission,
        )
        self._in_flight: deque[_InFlight] = deque()
        self._next_step_id = 0
        self._num_arrived = 0
        self._rows: list[RowOutput] = []
        self._released: list[str] = []
        self._placed: list[str] = []
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._recomputed_tokens = 0
        self._generated_tokens = 0
        self._num_finished = 0
        self._num_aborted = 0
        self._num_retracted = 0
        self._peak_pages_held = 0

    # -- Requests come and go.

    def add(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling: SamplingParams,
        *,
        namespace: str = "",
        tenant: str = "",
        priority: int = 0,
        deadline_s: float | None = None,
        hold_s: float | None = None,
        answer_ids: Sequence[int] = (),
        cached_tokens: int = 0,
    ) -> None:
        """Queue a request of a tenant. `sampling.seed` is set; `deadline_s` is on the caller's
        clock.

        One that ends without draws and has a `hold_s` leaves a hold behind, under its id: what is
        cached of its prompt stays so long, see `Holds`.

        One whose draws are constrained waits outside the queue for `constrain` or `forget`.

        `answer_ids` were generated elsewhere: the answer goes on behind them and tells none of them
        again. `cached_tokens` is what was reused of the prompt there.

        Raises ValueError if the id is in use, or if what is known leaves no room for a token.
        """
        max_len = self._settings.max_len
        if request_id in self._requests:
            raise ValueError(f"request id {request_id} is in use")
        known_len = len(prompt_ids) + len(answer_ids)
        if not (prompt_ids and known_len < max_len):
            raise ValueError(f"a prompt of {known_len} tokens; 1 to {max_len - 1} fit")
        request = Request(
            request_id,
            prompt_ids,
            sampling,
            arrival=self._num_arrived,
            max_len=max_len,
            eos_token_ids=self._vocabulary.eos_token_ids,
            namespace=namespace,
            tenant=tenant if self._settings.fair else "",
            priority=priority,
            deadline_s=deadline_s,
            hold_s=hold_s,
        )
        if answer_ids:
            resume(request, answer_ids, cached_tokens, self._texts)
        self._num_arrived += 1
        self._requests[request_id] = request
        if deadline_s is not None:
            self._timed[request_id] = request
        if sampling.is_constrained:
            request.status = Status.COMPILING
            self._compiling[request_id] = request
        else:
            self._waiting.add(request)

    def constrain(self, request_id: str, constraint: Constraint) -> None:
        """The grammar of a request is ready. Ignored if the request has ended."""
        request = self._compiling.pop(request_id, None)
        if request is not None:
            request.grammar = constraint
            request.status = Status.WAITING
            self._waiting.add(request)

    def forget(self, request_id: str) -> bool:
        """The grammar of a request cannot be served: drop it without an output. False if it has
        ended."""
        request = self._compiling.pop(request_id, None)
        if request is None:
            return False
        self._num_finished += 1
        self._forget(request)
        return True

    def abort(self, request_id: str, reason: str) -> None:
        """End a request in whatever state it is, and its hold. Unknown ids are ignored."""
        self.let_go(request_id)
        request = self._requests.get(request_id)
        if request is not None and request.live:
            self._end(request, Finish("abort", message=reason))

    def let_go(self, request_id: str) -> None:
        """End the hold of a request, or have it take none. Idempotent, for any id."""
        self._holds.let_go(request_id)
        request = self._requests.get(request_id)
        if request is not None:
            request.hold_s = None

    def abort_all(self, reason: str) -> None:
        """End every request as `abort` does."""
        for request_id in list(self._requests):
            self.abort(request_id, reason)

    def shut_down(self, reason: str) -> None:
        """End every request and every hold."""
        self._holds.let_go_all()
        for request in list(self._requests.values()):
            request.hold_s = None
            if request.live:
                self._end(request, Finish("shutdown", message=reason))

    def expire(self, now_s: float) -> None:
        """End the requests whose deadline has passed, and the holds whose time is over."""
        self._holds.expire(now_s)
        late = [r for r in self._timed.values() if (r.deadline_s or 0.0) <= now_s and r.live]
        for request in late:
            self._end(request, Finish("deadline", message="the request's deadline has passed"))

    def _end(self, request: Request, finish: Finish) -> None:
        """End a request from outside a step."""
        request.finish = finish
        self._rows.append(row_output(request, [], held_text(request), None))
        self._retire(request)
        self._release_retired()

    def _retire(self, request: Request) -> None:
        """The request has its `finish`: take it out of everything. What it holds comes back with
        `_release_retired`."""
        assert request.finish is not None
        if request.finish.kind in ("abort", "shutdown"):
            self._num_aborted += 1
        else:
            self._num_finished += 1
        if request.status is Status.COMPILING:
            del self._compiling[request.request_id]
            self._forget(request)
        elif request.status is Status.WAITING:
            self._waiting.remove(request)
            self._forget(request)
        else:
            self._places.leave(request, Status.FINISHING)

    def _release_retired(self) -> None:
        oldest = self._in_flight[0].plan.step_id if self._in_flight else None
        for request in self._places.release_retired(oldest):
            if request.live:
                self._waiting.add(request)
            else:
                self._hold(request)
                self._forget(request)

    def _hold(self, request: Request) -> None:
        """If it wished so, keep the prompt of a request that has just left, before anything else
        can happen to the pages."""
        if request.hold_s is not None and request.finish == Finish("length"):
            self._holds.take(
                request.request_id,
                request.namespace,
                request.known_ids(),
                request.hold_s,
                request.priority,
            )

    def _forget(self, request: Request) -> None:
        request.status = Status.DONE
        del self._requests[request.request_id]
        self._timed.pop(request.request_id, None)
        self._released.append(request.request_id)

    def _retract(self, request: Request) -> None:
        """Make a running request give up its place; it waits and computes again later."""
        self._num_retracted += 1
        self._places.leave(request, Status.RETRACTING)
        self._release_retired()

    # -- A step is planned.

    def plan_step(self) -> StepPlan | None:
        """The next step; None if nothing can run before a result is applied or a request comes."""
        builder = PlanBuilder(self._limits, chunked=self._settings.chunked_prefill)
        self._planner.fill(builder, idle=not self._in_flight)
        if not builder.requests:
            return None
        plan = builder.build(self._next_step_id, self._sharing)
        self._next_step_id += 1
        self._in_flight.append(_InFlight(plan, builder.requests, builder.work))
        num_held = self._limits.num_pages - 1 - self._cache.num_free - self._cache.num_cached
        self._peak_pages_held = max(self._peak_pages_held, num_held)
        return plan

    def _count_admission(self, request: Request, num_reused: int) -> None:
        if request.cached_tokens < 0:
            request.cached_tokens = num_reused
            self._placed.append(request.request_id)
            self._waiting.charge_prompt(request.tenant, request.known - num_reused)
            self._prompt_tokens += request.prompt_len
            self._cached_tokens += num_reused
        else:
            self._recomputed_tokens += request.known - num_reused

    def _match_len(self, request: Request) -> int:
        return self._cache.match_len(request.namespace, request.known_ids())

    # -- A step has run, or failed.

    def apply(self, result: StepResult, elapsed_s: float | None = None) -> None:
        """Take the draws of the oldest dispatched step, and release what waited for it.

        `elapsed_s` is how long it took, where the caller has a clock.
        """
        flight = self._in_flight[0]
        if flight.plan.step_id != result.step_id:
            raise SchedulingError(f"step {result.step_id} applied before {flight.plan.step_id}")
        if elapsed_s is not None:
            self._chains.observe(flight.plan, elapsed_s)
            if self._pace is not None and flight.plan.mode == "mixed":
                self._pace.observe(flight.work, elapsed_s)
        reader = StepReader(flight.plan, result, self._texts)
        kv_len = flight.plan.kv_len.tolist()
        generated = defaultdict[str, int](int)
        for row, request in enumerate(flight.requests):
            if request.void_step_id >= result.step_id:
                continue
            output = reader.read(row, request)
            # Less than the step computed where the row's draw was skipped: that comes again.
            request.committed = min(kv_len[row], request.computed)
            if output is not None:
                generated[request.tenant] += len(output.token_ids)
                self._rows.append(output)
                if output.finish is not None:
                    self._retire(request)
            if not request.published and request.committed >= request.prompt_len:
                self._publish_prompt(request)
        for tenant, num_tokens in generated.items():
            self._generated_tokens += num_tokens
            self._waiting.charge_generated(tenant, num_tokens)
        # Only now: while its rows were read, nothing of this step may be given back.
        self._in_flight.popleft()
        self._release_retired()

    def _publish_prompt(self, request: Request) -> None:
        """The whole prompt has KV: let others reuse it while the answer is still being drawn."""
        request.published = True
        if request.status is Status.RUNNING:
            assert request.lease is not None
            self._cache.publish(request.lease, request.tokens[: request.prompt_len])

    def restart(self, *, failed: bool = True) -> None:
        """Nothing on the device is valid any more, and no dispatched step will be applied: one
        `failed`, or the cache was emptied on order.

        Requests go back to the queue with the tokens they have. One that was placed at more than
        MAX_STEP_FAILURES failures ends with an error: it may be what breaks the steps.
        """
        self._in_flight.clear()
        vacated = self._places.lose_all()
        self._holds.forget_all()
        for request in vacated:
            if not request.live:
                self._forget(request)
                continue
            if request.grammar is not None:
                request.grammar.go_back(request.num_generated)
            self._waiting.add(request)
            request.num_failures += failed
            if request.num_failures > MAX_STEP_FAILURES:
                self._end(request, Finish("error", message="the step failed repeatedly"))

    def retract_all(self) -> None:
        """Make every running request give up what it holds, and compute it again later. No step may
        be in flight."""
        for request in list(self._places.running):
            self._retract(request)

    @property
    def num_placed(self) -> int:
        """Requests that hold a slot or pages."""
        return len(self._places.running) + len(self._places.leaving)

    @property
    def next_deadline_s(self) -> float | None:
        """When the next request, or the next hold, is due to expire."""
        dues_s = [r.deadline_s or 0.0 for r in self._timed.values() if r.live]
        if self._holds.next_due_s is not None:
            dues_s.append(self._holds.next_due_s)
        return min(dues_s, default=None)

    def flush_cache(self) -> int:
        """Forget every cached prefix that no running request needs, held or not; the pages
        freed."""
        self._holds.let_go_all()
        return self._cache.clear()

    def track_prefixes(self) -> None:
        """From now on tell in `take_prefix_changes` what enters and leaves the cache."""
        self._cache.journal = PrefixJournal()

    def take_prefix_changes(self) -> JournalEntry | None:
        """What has changed since the last call; None if nothing has, or nobody tracks it."""
        return None if self._cache.journal is None else self._cache.journal.take()

    @property
    def busy(self) -> bool:
        """Whether somebody still waits for an answer, or for more of it."""
        return any(request.live for request in self._requests.values())

    def take_outputs(self) -> SchedulerOutputs:
        """Everything there is to tell since the last call."""
        outputs = SchedulerOutputs(self._rows, self._released)
        self._rows, self._released = [], []
        return outputs

    def take_placed(self) -> list[str]:
        """The requests that got their first place in a step since the last call."""
        placed, self._placed = self._placed, []
        return placed

    # -- What can be seen from outside.

    @property
    def holds(self) -> list[str]:
        """Requests for which something is held, the oldest first."""
        return list(self._holds)

    @property
    def idle(self) -> bool:
        return not self._requests and not self._in_flight

    def stats(self) -> EngineStats:
        cache = self._cache
        return EngineStats(
            num_running=len(self._places.running),
            num_waiting=len(self._waiting) + len(self._compiling),
            pages_total=self._limits.num_pages - 1,
            pages_free=cache.num_free,
            pages_cached=cache.num_cached,
            pages_held_peak=self._peak_pages_held,
            locks=cache.num_locks,
            holds=len(self._holds),
            holds_given_up=self._holds.num_given_up,
            slots_free=self._places.num_free_slots,
            slots_total=self._limits.num_slots,
            steps=self._next_step_id,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            recomputed_tokens=self._recomputed_tokens,
            generated_tokens=self._generated_tokens,
            requests_finished=self._num_finished,
            requests_aborted=self._num_aborted,
            requests_retracted=self._num_retracted,
            tokens_held=self._limits.page_size
            * (self._limits.num_pages - 1 - cache.num_free - cache.num_cached),
        )

    def check(self) -> None:
        """Recount pages, locks, slots and states from scratch; raise SchedulingError or the cache's
        AccountingError at a discrepancy."""
        self._cache.check()
        queued = [*self._waiting, *self._compiling.values()]
        everyone = [*queued, *self._places.running, *self._places.leaving]
        if sorted(r.request_id for r in everyone) != sorted(self._requests):
            raise SchedulingError("a request is in no queue, or in two")
        for r in queued:
            if r.lease is not None or r.slot != -1 or r.computed or r.pending:
                raise SchedulingError(f"{r.request_id} waits and holds something")
        placed = {r.request_id for r in (*self._places.running, *self._places.leaving)}
        for flight in self._in_flight:
            for r in flight.requests:
                if r.request_id not in placed or r.last_step_id < flight.plan.step_id:
                    raise SchedulingError(f"{r.request_id} gave up what a dispatched step uses")
        problem = self._holds.discrepancy() or self._places.discrepancy(num_holds=len(self._holds))
        if problem is not None:
            raise SchedulingError(problem)
