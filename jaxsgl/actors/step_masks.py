"""Token masks for steps that are already on the device: each is made as soon as the draw before it
is known, while the forward pass runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from jaxsgl.actors.times import TimeMeter
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.step import ConstrainedDraw, DrawConstraint, MaskRows, StepPlan, StepResult

GRACE_S = 0.004
"""How long a late mask may keep the device waiting for the draws of a step..."""
IDLE_GRACE_S = 0.02
"""...and if all that the step could draw is late."""
POLL_S = 0.001
NUM_THREADS = 2
BATCH_ROWS = 64
"""Whose masks are made in one go: as many are late if one of them takes long."""


class MaskMaker:
    """Follows the constrained draws of a runner's steps and makes their masks.

    Three kinds of threads meet here: `begin` is called where steps are planned, `StepMasks.fill`
    where they are dispatched, `feed` where their draws arrive. What takes long is done in threads
    of its own, which exist from the first such mask on.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="masks")
        self.times = TimeMeter()
        """What each step waited for its masks and spent on laying them out."""
        self._changed = threading.Condition()
        self._open: set[int] = set()
        """Steps with constrained draws that were begun and have not ended."""

    def begin(self, plan: StepPlan) -> DispatchedMasks | None:
        """A step is about to be dispatched; None if it needs no masks."""
        if not plan.constrained:
            return None
        with self._changed:
            self._open.add(plan.step_id)
        return DispatchedMasks(self, plan)

    def feed(self, plan: StepPlan, result: StepResult) -> None:
        """The draws of a step are known: follow them, and make the masks of the next."""
        skipped = result.skipped
        drawn = [each for each in plan.constrained if skipped is None or not skipped[each.logit]]
        token_ids = result.token_ids.tolist()
        for each in drawn:
            each.constraint.take(each.answer_len, token_ids[each.logit])
        slow = [each.constraint for each in drawn if not each.constraint.try_prepare()]
        self.end(plan.step_id)
        self._prepare(slow)

    def end(self, step_id: int) -> None:
        """Nothing more will be heard of a step. Idempotent, for any step."""
        with self._changed:
            self._open.discard(step_id)
            self._changed.notify_all()

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def wait_for(
        self, step_id: int, draws: Sequence[ConstrainedDraw], idle: bool, is_due: Callable[[], bool]
    ) -> None:
        """Return when every draw's mask is ready or will never be, or when those that are late keep
        the device waiting; `idle` says that the step draws nothing but `draws`."""
        free_s: float | None = None
        """When the device became free."""
        with self._changed:
            while True:
                if any(other < step_id for other in self._open):
                    self._changed.wait()  # the draws that come first are not known
                    continue
                # What is not next now never will be: its request ended or skipped a draw.
                late = [each for each in draws if _is_next(each)]
                if not late:
                    return
                if free_s is None and is_due():
                    free_s = time.monotonic()
                hopeless = idle and not any(_is_ready(each) for each in draws)
                grace_s = IDLE_GRACE_S if hopeless else GRACE_S
                if free_s is not None and time.monotonic() >= free_s + grace_s:
                    return
                self._changed.wait(POLL_S)

    def _prepare(self, constraints: list[DrawConstraint]) -> None:
        batched: list[Constraint] = []
        alone: list[DrawConstraint] = []
        for each in constraints:
            if isinstance(each, Constraint) and each.batch is not None:
                batched.append(each)
            else:
                alone.append(each)
        if batched:
            self._threads.submit(self._prepare_batched, batched)
        for index in range(min(NUM_THREADS, len(alone))):
            self._threads.submit(self._prepare_each, alone[index::NUM_THREADS])

    def _prepare_batched(self, constraints: list[Constraint]) -> None:
        for begin in range(0, len(constraints), BATCH_ROWS):
            Constraint.prepare_together(constraints[begin : begin + BATCH_ROWS])
            with self._changed:
                self._changed.notify_all()

    def _prepare_each(self, constraints: list[DrawConstraint]) -> None:
        for constraint in constraints:
            constraint.prepare()
            with self._changed:
                self._changed.notify_all()


class DispatchedMasks:
    """See `step.StepMasks`."""

    def __init__(self, maker: MaskMaker, plan: StepPlan) -> None:
        self._maker = maker
        self._plan = plan

    def fill(self, masks: NDArray[np.uint32], is_due: Callable[[], bool]) -> MaskRows:
        begin_s = time.perf_counter()
        plan = self._plan
        num_logits = len(plan.logit_idx)
        idle = len(plan.constrained) == num_logits
        self._maker.wait_for(plan.step_id, plan.constrained, idle, is_due)
        mask_row = np.full(num_logits, -1, np.int32)
        skipped = np.zeros(num_logits, np.bool_)
        num_masks = 0
        for each in plan.constrained:
            if each.constraint.copy_mask(each.answer_len, masks[num_masks]):
                mask_row[each.logit] = num_masks
                num_masks += 1
            else:
                skipped[each.logit] = True
        self._maker.times.observe(time.perf_counter() - begin_s)
        return MaskRows(mask_row, skipped)


def _is_next(draw: ConstrainedDraw) -> bool:
    """Whether its mask is still to be made, and can be."""
    constraint, answer_len = draw.constraint, draw.answer_len
    return constraint.taken_len == answer_len and not constraint.settled(answer_len)


def _is_ready(draw: ConstrainedDraw) -> bool:
    return draw.constraint.settled(draw.answer_len)
