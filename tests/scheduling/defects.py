"""Schedulers with one mistake each, of the kinds that engines have had. The checks must find
them."""

from __future__ import annotations

from jaxsgl.scheduling.request import Request
from jaxsgl.scheduling.scheduler import Scheduler
from jaxsgl.step import StepPlan, StepResult


class FreesWhileInFlight(Scheduler):
    """Gives slot and pages back although a dispatched step still uses them."""

    def _release_retired(self) -> None:
        for request in self._places.release_retired(None):
            if request.live:
                self._waiting.add(request)
            else:
                self._forget(request)


class SharesBeforeRetire(Scheduler):
    """Puts a prompt into the cache when its last chunk is dispatched, not when it has run."""

    def plan_step(self) -> StepPlan | None:
        plan = super().plan_step()
        if plan is not None:
            for request in self._in_flight[-1].requests:
                if not request.published and request.computed >= request.prompt_len:
                    self._publish_prompt(request)
        return plan


class LosesDrawOfRetracted(Scheduler):
    """Drops the draw that was in flight when a request was retracted, but counts it as computed."""

    def _retract(self, request: Request) -> None:
        if request.pending:
            request.tokens.append(0)
        super()._retract(request)


class ForgetsSlotOfAborted(Scheduler):
    """Leaves the slot of an aborted request marked as taken."""

    def abort(self, request_id: str, reason: str) -> None:
        free = self._places.num_free_slots
        super().abort(request_id, reason)
        if self._places.num_free_slots > free:
            self._places._free_slots.pop()


class AppliesTwiceToEnded(Scheduler):
    """Reports the draws of a request that has ended already."""

    def apply(self, result: StepResult) -> None:
        ended = [r for r in self._in_flight[0].requests if not r.live]
        finishes = [r.finish for r in ended]
        for request in ended:
            request.finish = None
        super().apply(result)
        for request, finish in zip(ended, finishes, strict=True):
            request.finish = request.finish or finish


class KeepsTreeAfterFailure(Scheduler):
    """Goes on with the old radix tree after a failed step, though its pages were lost."""

    def restart(self) -> None:
        reset = self._cache.reset
        self._cache.reset = self._close_all  # type: ignore[method-assign]
        try:
            super().restart()
        finally:
            self._cache.reset = reset  # type: ignore[method-assign]

    def _close_all(self) -> None:
        for request in self._places.running + self._places.leaving:
            assert request.lease is not None
            self._cache.close(request.lease, request.tokens[: request.committed])


class WaitsForHolds(Scheduler):
    """Gives up no hold before its time, whoever needs the pages."""

    def plan_step(self) -> StepPlan | None:
        self._holds.give_up_one = lambda needed: False  # type: ignore[method-assign]
        return super().plan_step()


class HoldsForNobody(Scheduler):
    """Holds a prompt although its hold was let go of before it was computed."""

    def let_go(self, request_id: str) -> None:
        self._holds.let_go(request_id)


class KeepsHoldsAfterFailure(Scheduler):
    """Goes on with holds of pages that were lost."""

    def restart(self) -> None:
        holds = dict(self._holds._holds)
        super().restart()
        self._holds._holds.update(holds)


DEFECTS = [
    FreesWhileInFlight,
    SharesBeforeRetire,
    LosesDrawOfRetracted,
    ForgetsSlotOfAborted,
    AppliesTwiceToEnded,
    KeepsTreeAfterFailure,
    WaitsForHolds,
    HoldsForNobody,
    KeepsHoldsAfterFailure,
]
