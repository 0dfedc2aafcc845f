"""A replica without a device under a clock without waiting: thousands of seconds in one.

The scheduler, the cache and the scheduler actor are the real ones. Steps take the time that a cost
model says and draw tokens from a hash of the row, so that a run depends on its seed alone.
"""

from __future__ import annotations

import asyncio
import selectors
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsgl.actors.messages import (
    Admit,
    PrefixChanges,
    StepOutputs,
    ToFront,
    TrackPrefixes,
)
from jaxsgl.actors.scheduler_actor import SchedulerActor
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import EngineStats, SamplingParams
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.step import StepLimits, StepPlan, StepResult

VOCAB_SIZE = 50_000


class _InstantSelector(selectors.DefaultSelector):
    """Never waits: where a loop would sleep, its clock moves on instead."""

    def __init__(self, loop_time: VirtualClock) -> None:
        super().__init__()
        self._clock = loop_time

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("everything waits for something that nobody will do")
            self._clock.now_s += timeout
        return events


@dataclass
class VirtualClock:
    now_s: float = 0.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose sleeps take no time."""

    def __init__(self) -> None:
        self._virtual = VirtualClock()
        super().__init__(_InstantSelector(self._virtual))

    def time(self) -> float:
        return self._virtual.now_s


def run_virtually[T](main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a virtual clock that starts at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@dataclass(frozen=True)
class StepCost:
    """Seconds that a step takes."""

    fixed_s: float = 0.010
    per_token_s: float = 0.0001
    sizes: tuple[int, ...] = ()
    """To which tokens are padded, where they are."""
    per_pair_s: float = 0.0
    """For each key that a token of a prompt's chunk attends to."""
    per_key_s: float = 0.0
    """The same for rows of a single token, which read every key for themselves."""

    def of(self, plan: StepPlan) -> float:
        num_tokens = next((n for n in self.sizes if n >= plan.num_tokens), plan.num_tokens)
        lens = np.diff(plan.q_start)
        num_pairs = np.where(lens > 1, lens * (plan.kv_len - (lens - 1) / 2), 0).sum()
        num_keys = plan.kv_len[lens == 1].sum()
        attention_s = self.per_pair_s * num_pairs + self.per_key_s * num_keys
        return float(self.fixed_s + self.per_token_s * num_tokens + attention_s)


class SimulatedRunner:
    """Stands in for RunnerActor: a step's result comes when its time is up, in order."""

    recompiles = 0

    def __init__(self, limits: StepLimits, cost: StepCost) -> None:
        self.limits = limits
        self._cost = cost
        self._busy_until_s = 0.0

    def submit(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        loop = asyncio.get_running_loop()
        self._busy_until_s = max(self._busy_until_s, loop.time()) + self._cost.of(plan)
        future: asyncio.Future[StepResult] = loop.create_future()
        loop.call_at(self._busy_until_s, self._finish, future, plan)
        return future

    async def reset(self) -> None:
        """Nothing to rebuild."""

    @staticmethod
    def _finish(future: asyncio.Future[StepResult], plan: StepPlan) -> None:
        if future.cancelled():
            return
        row_of_logit = np.repeat(np.arange(plan.num_rows), np.diff(plan.logit_start))
        place = zip(plan.slot[row_of_logit], plan.kv_len[row_of_logit], strict=True)
        drawn = [zlib.crc32(b"%d %d" % at) % VOCAB_SIZE for at in place]
        valid = np.ones(len(drawn), np.bool_)
        future.set_result(StepResult(plan.step_id, np.array(drawn, np.int32), valid))


@dataclass(frozen=True)
class SimulatedAnswer:
    token_ids: list[int]
    cached_tokens: int
    wait_s: float
    """From the request to its first token."""
    gaps_s: list[float]
    """Between its tokens."""


class SimulatedReplica:
    """Ask it for answers: `await replica.answer(prompt_ids, max_tokens)`."""

    def __init__(
        self,
        *,
        pool_tokens: int,
        page_size: int = 16,
        max_rows: int = 16,
        max_tokens: int = 512,
        policy: str = "fcfs",
        radix: bool = True,
        fair: bool = True,
        tenant_quota: float | None = None,
        cost: StepCost | None = None,
        max_itl_s: float | None = None,
    ) -> None:
        cost = cost or StepCost()
        num_pages = pool_tokens // page_size + 1
        limits = StepLimits(
            num_pages=num_pages,
            page_size=page_size,
            num_slots=max_rows,
            max_rows=max_rows,
            max_tokens=max_tokens,
            max_logits=max_rows,
            max_pages_per_row=num_pages - 1,
            vocab_size=VOCAB_SIZE,
            mixed_sizes=cost.sizes,
        )
        self.scheduler = Scheduler(
            limits,
            KVCacheManager(num_pages, page_size, radix=radix),
            Vocabulary([], ()),
            SchedulingSettings(
                max_len=(num_pages - 1) * page_size,
                policy=policy,
                max_itl_s=max_itl_s,
                fair=fair,
                tenant_quota=tenant_quota,
            ),
        )
        self._actor = SchedulerActor(
            self.scheduler,
            SimulatedRunner(limits, cost),  # pyright: ignore[reportArgumentType]
            self._on_message,
            overlap=True,
            capacity=100_000,
        )
        self._waiting: dict[str, _Collector] = {}
        self._num_asked = 0
        self._on_changes: Callable[[PrefixChanges], None] = lambda changes: None

    async def __aenter__(self) -> SimulatedReplica:
        await self._actor.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._actor.stop(60)

    def stats(self) -> EngineStats:
        return self.scheduler.stats()

    async def answer(
        self,
        prompt_ids: list[int],
        max_tokens: int,
        on_first: Callable[[], None] = lambda: None,
        *,
        tenant: str = "",
    ) -> SimulatedAnswer:
        """`on_first` is called with the first token. Tenants share no prefixes."""
        loop = asyncio.get_running_loop()
        request_id = str(self._num_asked)
        self._num_asked += 1
        collector = self._waiting[request_id] = _Collector(
            loop.create_future(), loop.time(), on_first
        )
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=0)
        admit = Admit(request_id, prompt_ids, sampling, cache_namespace=tenant, tenant=tenant)
        self._actor.deliver(admit)
        return await collector.done

    def tell_prefixes(self, on_changes: Callable[[PrefixChanges], None]) -> None:
        """From now on call `on_changes` with what enters and leaves the cache."""
        self._on_changes = on_changes
        self._actor.deliver(TrackPrefixes())

    def _on_message(self, message: ToFront) -> None:
        if isinstance(message, PrefixChanges):
            self._on_changes(message)
        if not isinstance(message, StepOutputs):
            return
        now_s = asyncio.get_running_loop().time()
        for row in message.rows:
            collector = self._waiting[row.request_id]
            if not collector.token_ids:
                collector.wait_s = now_s - collector.asked_at_s
                collector.on_first()
            else:
                collector.gaps_s.append(now_s - collector.last_s)
            collector.last_s = now_s
            collector.token_ids += row.token_ids
            if row.finish is not None:
                del self._waiting[row.request_id]
                collector.done.set_result(
                    SimulatedAnswer(
                        collector.token_ids,
                        row.cached_tokens,
                        collector.wait_s,
                        collector.gaps_s,
                    )
                )


class _Collector:
    def __init__(
        self,
        done: asyncio.Future[SimulatedAnswer],
        asked_at_s: float,
        on_first: Callable[[], None],
    ) -> None:
        self.done = done
        self.on_first = on_first
        self.asked_at_s = asked_at_s
        self.token_ids: list[int] = []
        self.wait_s = 0.0
        self.last_s = 0.0
        self.gaps_s: list[float] = []
