"""How long the device waits for masks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxsgl.actors.step_masks import MaskMaker
from jaxsgl.step import SAMPLE, ConstrainedDraw, MaskRows, StepPlan, StepResult


class FakeConstraint:
    """A mask of one word, `answer_len`; slow ones wait for `permit`."""

    def __init__(self, *, slow: bool = False) -> None:
        self.taken_len = 0
        self.prepared_len = 0
        self.tokens: list[int] = []
        self.permit = threading.Event()
        self._slow = slow

    def settled(self, answer_len: int) -> bool:
        return self.prepared_len == answer_len

    def copy_mask(self, answer_len: int, row: NDArray[np.uint32]) -> bool:
        if self.prepared_len != answer_len:
            return False
        row[:] = answer_len
        return True

    def take(self, answer_len: int, token_id: int) -> None:
        if answer_len == self.taken_len:
            self.tokens.append(token_id)
            self.taken_len += 1

    def try_prepare(self) -> bool:
        if not self._slow:
            self.prepared_len = self.taken_len
        return not self._slow

    def prepare(self) -> None:
        self.permit.wait()
        self.prepared_len = self.taken_len


def plan_of(step_id: int, *draws: tuple[int, FakeConstraint], num_logits: int | None = None):
    """A decode step; each draw is (length of the answer, constraint), free ones come after."""
    num = len(draws) if num_logits is None else num_logits
    row = np.arange(num, dtype=np.int32)
    return StepPlan(
        step_id=step_id,
        mode="decode",
        slot=row,
        q_start=np.arange(num + 1, dtype=np.int32),
        token_ids=row,
        kv_len=row + 1,
        write_from=row,
        logit_idx=row,
        logit_start=np.arange(num + 1, dtype=np.int32),
        logit_target=np.full(num, SAMPLE, np.int32),
        page_edits=np.zeros((0, 3), np.int32),
        constrained=tuple(ConstrainedDraw(n, *draw) for n, draw in enumerate(draws)),
    )


def result_of(plan: StepPlan, skipped: list[bool] | None = None) -> StepResult:
    num = len(plan.logit_idx)
    return StepResult(
        plan.step_id,
        np.arange(100, 100 + num, dtype=np.int32),
        np.ones(num, np.bool_),
        skipped=None if skipped is None else np.array(skipped),
    )


@pytest.fixture
def maker() -> Iterator[MaskMaker]:
    maker = MaskMaker()
    yield maker
    maker.stop()


class Filling:
    """A fill on a thread of its own, as on the device thread."""

    def __init__(self, maker: MaskMaker, plan: StepPlan, is_due: Callable[[], bool]) -> None:
        masks = maker.begin(plan)
        assert masks is not None
        self.rows: MaskRows | None = None
        self.masks = np.zeros((len(plan.logit_idx), 1), np.uint32)

        def fill() -> None:
            self.rows = masks.fill(self.masks, is_due)

        self._thread = threading.Thread(target=fill)
        self._thread.start()

    def done(self, timeout_s: float = 20) -> MaskRows:
        self._thread.join(timeout_s)
        assert self.rows is not None
        return self.rows

    @property
    def waits(self) -> bool:
        time.sleep(0.05)
        return self._thread.is_alive()


def test_a_step_without_constraints_needs_nothing(maker: MaskMaker):
    assert maker.begin(plan_of(0, num_logits=3)) is None


def test_what_is_ready_is_filled_at_once(maker: MaskMaker):
    one, other = FakeConstraint(), FakeConstraint()
    rows = Filling(maker, plan_of(0, (0, one), (0, other), num_logits=3), lambda: False).done()
    assert rows.mask_row.tolist() == [0, 1, -1]
    assert not rows.skipped.any()


def test_the_next_step_waits_for_the_draws_of_the_last(maker: MaskMaker):
    constraint = FakeConstraint()
    first, second = plan_of(0, (0, constraint)), plan_of(1, (1, constraint))
    Filling(maker, first, lambda: True).done()
    filling = Filling(maker, second, lambda: True)
    assert filling.waits
    maker.feed(first, result_of(first))
    assert filling.done().mask_row.tolist() == [0]
    assert filling.masks.tolist() == [[1]]
    assert constraint.tokens == [100]


def test_a_late_mask_is_waited_for_while_the_device_is_busy(maker: MaskMaker):
    slow, device_is_free = FakeConstraint(slow=True), threading.Event()
    first, second = plan_of(0, (0, slow)), plan_of(1, (1, slow), num_logits=2)
    Filling(maker, first, lambda: True).done()
    filling = Filling(maker, second, device_is_free.is_set)
    maker.feed(first, result_of(first))
    assert filling.waits
    slow.permit.set()
    assert filling.done().mask_row.tolist() == [0, -1]


@pytest.mark.parametrize("num_free", [0, 1])
def test_a_late_mask_is_skipped_when_the_device_waits(maker: MaskMaker, num_free: int):
    slow = FakeConstraint(slow=True)
    first, second = plan_of(0, (0, slow)), plan_of(1, (1, slow), num_logits=1 + num_free)
    Filling(maker, first, lambda: True).done()
    filling = Filling(maker, second, lambda: True)
    maker.feed(first, result_of(first))
    rows = filling.done()
    assert rows.skipped.tolist() == [True] + [False] * num_free
    # What was planned on the skipped draw is skipped, too, without waiting.
    third = Filling(maker, plan_of(2, (2, slow), num_logits=2), lambda: False)
    maker.feed(second, result_of(second, rows.skipped.tolist()))
    assert third.done().skipped.tolist() == [True, False]
    assert slow.tokens == [100]
    slow.permit.set()


def test_a_step_that_failed_holds_up_nobody(maker: MaskMaker):
    constraint = FakeConstraint()
    Filling(maker, plan_of(0, (0, constraint)), lambda: True).done()
    filling = Filling(maker, plan_of(1, (1, constraint), num_logits=2), lambda: False)
    assert filling.waits
    maker.end(0)
    assert filling.done().skipped.tolist() == [True, False]
