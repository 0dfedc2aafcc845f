"""Owns the runner: one thread dispatches steps, another waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from jaxsgl.actors.step_masks import MaskMaker
from jaxsgl.actors.step_watchdog import StepWatchdog
from jaxsgl.actors.timeline import Span, Timeline
from jaxsgl.actors.times import TimeMeter
from jaxsgl.interface import EngineOperation, OperationReport, TimeHistogram
from jaxsgl.step import (
    Change,
    PendingStep,
    Runner,
    StepLimits,
    StepMasks,
    StepPlan,
    StepResult,
)


class RunnerActor:
    """Runs steps in the order of their plans, beside the event loop.

    Dispatching must not wait for results, or the device would idle between steps; so waiting has a
    thread of its own.
    """

    def __init__(
        self,
        runner: Runner,
        timeline: Timeline | None = None,
        watchdog: StepWatchdog | None = None,
    ) -> None:
        """A `watchdog` is told of every step, and is started and stopped by its owner."""
        self._runner = runner
        self._watchdog = watchdog
        self._timeline = Timeline() if timeline is None else timeline
        self._device_free_s = 0.0
        """When the device was done with the last step that was waited for."""
        self._masks = MaskMaker()
        self._times = TimeMeter()
        self._device = _Thread("device")
        self._fetch = _Thread("fetch")

    @property
    def limits(self) -> StepLimits:
        return self._runner.limits

    @property
    def recompiles(self) -> int:
        return self._runner.recompiles

    @property
    def step_time(self) -> TimeHistogram:
        """Of each step on the device: an upper bound of what it computed."""
        return self._times.reading()

    @property
    def mask_time(self) -> TimeHistogram:
        return self._masks.times.reading()

    def submit(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        """Dispatch a step. The future brings its result, or what the device raised."""
        return asyncio.ensure_future(self._run(plan))

    async def reset(self) -> None:
        """Rebuild the device's state after a failed step. No submitted step may be unfinished."""
        await self._device.run(self._runner.reset)

    async def prepare(self, operation: EngineOperation) -> Change:
        """Beside the steps; see `step.Runner.prepare`."""
        return await asyncio.to_thread(self._runner.prepare, operation)

    async def change(self, change: Change) -> OperationReport:
        """Carry out what was prepared. No submitted step may be unfinished."""
        return await self._device.run(change)

    async def stop(self) -> None:
        """Let what was dispatched end, then end the threads."""
        await self._device.stop()
        await self._fetch.stop()
        self._masks.stop()

    async def _run(self, plan: StepPlan) -> StepResult:
        if self._watchdog is not None:
            self._watchdog.step_begun()
        try:
            masks = self._masks.begin(plan)
            pending, begin_s = await self._device.run(self._dispatch, plan, masks)
            result, end_s = await self._fetch.run(self._wait, plan, pending, begin_s)
        finally:
            self._masks.end(plan.step_id)
            if self._watchdog is not None:
                self._watchdog.step_ended()
        self._timeline.add(Span("fetch", plan.step_id, end_s, time.perf_counter()))
        return result

    def _dispatch(self, plan: StepPlan, masks: StepMasks | None) -> tuple[PendingStep, float]:
        begin_s = time.perf_counter()
        pending = self._runner.dispatch(plan, masks)
        self._timeline.add(Span("dispatch", plan.step_id, begin_s, time.perf_counter()))
        return pending, begin_s

    def _wait(
        self, plan: StepPlan, pending: PendingStep, begin_s: float
    ) -> tuple[StepResult, float]:
        result = pending.wait()
        end_s = time.perf_counter()
        if plan.constrained:
            self._masks.feed(plan, result)
        begin_s = max(begin_s, self._device_free_s)
        self._timeline.add(Span("device", result.step_id, begin_s, end_s))
        self._times.observe(end_s - begin_s)
        self._device_free_s = end_s
        return result, end_s


class _Thread:
    """Runs one function after another. To end it takes no other thread, so that it can be ended
    while the interpreter ends, when none can be started."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._unfinished: set[Future[Any]] = set()

    def run[**P, T](
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        job = self._pool.submit(function, *args, **kwargs)
        self._unfinished.add(job)
        job.add_done_callback(self._unfinished.discard)
        return asyncio.wrap_future(job)

    async def stop(self) -> None:
        jobs = [asyncio.wrap_future(job) for job in tuple(self._unfinished)]
        await asyncio.gather(*jobs, return_exceptions=True)
        self._pool.shutdown()
