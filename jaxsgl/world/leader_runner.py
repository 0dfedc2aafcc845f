"""The leader's runner: does as its own one does, and has the followers do the same before it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jaxsgl.interface import EngineOperation, OperationFailed, OperationRefused, OperationReport
from jaxsgl.step import (
    Change,
    MaskRows,
    PendingStep,
    Runner,
    StepLimits,
    StepMasks,
    StepPlan,
    StepResult,
)
from jaxsgl.world.errors import WorldLost, one_line
from jaxsgl.world.members import Members
from jaxsgl.world.orders import (
    Carried,
    Carry,
    Forget,
    Masks,
    Prepare,
    Prepared,
    Reset,
    Step,
    end_of,
)

_BLAME_WAIT_S = 2.0
"""A step that fails because a follower is gone may fail before that is noticed."""


class LeaderRunner:
    """Implements `step.Runner` for a world.

    A step that fails on any process ends the world: the others may wait for ever in the middle of
    it, and what they would compute next with each other would not belong together.
    """

    def __init__(self, runner: Runner, members: Members) -> None:
        self._runner = runner
        self._members = members
        self._ask_ids = itertools.count()

    @property
    def limits(self) -> StepLimits:
        return self._runner.limits

    @property
    def recompiles(self) -> int:
        return self._runner.recompiles

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> PendingStep:
        bare = dataclasses.replace(plan, constrained=())
        self._members.tell(Step(bare, has_masks=masks is not None))
        told = None if masks is None else _ToldMasks(masks, self._members)
        try:
            return _WorldStep(self._runner.dispatch(plan, told), self)
        except Exception as error:
            raise self.failed(error) from error

    def prepare(self, operation: EngineOperation) -> Change:
        ask_id = next(self._ask_ids)
        self._members.tell(Prepare(ask_id, operation))
        change, problem = None, None
        try:
            change = self._runner.prepare(operation)
        except Exception as error:
            problem = error
        for answer in self._members.answers(ask_id):
            if problem is None and isinstance(answer, Prepared) and answer.refused is not None:
                problem = OperationRefused(answer.refused)
        if change is None or problem is not None:
            self._members.tell(Forget(ask_id))
            raise problem or AssertionError("prepared nothing")
        prepared = change
        return lambda: self._carry(ask_id, prepared)

    def reset(self) -> None:
        self._members.tell(Reset())
        self._runner.reset()

    def failed(self, error: Exception) -> WorldLost:
        """The end of the world that a failed step is."""
        self._members.wait_for_loss(_BLAME_WAIT_S)
        return self._members.lose(f"a step failed: {one_line(error)}", by_itself=True)

    def _carry(self, ask_id: int, change: Change) -> OperationReport:
        """Raises WorldLost unless it ends on all processes in the same way."""
        self._members.tell(Carry(ask_id))
        report, error = None, None
        try:
            report = change()
        except (OperationRefused, OperationFailed) as raised:
            error = raised
        end = end_of(error)
        for answer in self._members.answers(ask_id):
            if not isinstance(answer, Carried) or answer.end != end:
                why = f"an operation ended as {end} here, and on another process as {answer}"
                raise self._members.lose(why, by_itself=False)
        if report is None:
            raise error or AssertionError("an operation without an end")
        return report


class _WorldStep:
    def __init__(self, step: PendingStep, runner: LeaderRunner) -> None:
        self._step = step
        self._runner = runner

    def wait(self) -> StepResult:
        try:
            return self._step.wait()
        except Exception as error:
            raise self._runner.failed(error) from error


class _ToldMasks:
    """Tells the followers what masks there are. Implements `step.StepMasks`."""

    def __init__(self, masks: StepMasks, members: Members) -> None:
        self._masks = masks
        self._members = members

    def fill(self, masks: NDArray[np.uint32], is_due: Callable[[], bool]) -> MaskRows:
        rows = self._masks.fill(masks, is_due)
        num_used = int(rows.mask_row.max(initial=-1)) + 1
        self._members.tell(Masks(rows, masks[:num_used]))
        return rows
