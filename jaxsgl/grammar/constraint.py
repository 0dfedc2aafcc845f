"""What holds one answer to its grammar: a matcher, and the mask of its next token."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxsgl.grammar.closing import Steering
from jaxsgl.grammar.matcher import MaskBatch, Matcher
from jaxsgl.grammar.restrictions import Restrictions
from jaxsgl.grammar.vocabulary import Row, Vocabulary

log = logging.getLogger(__name__)


class Constraint:
    """Follows the draws of one request, beside the thread that plans its steps.

    `take` and the two `prepare` functions may be called from any thread, and wait for each other.
    The attributes say where things stand; each is a single value that other threads may read at any
    time. Lengths count the tokens of the answer.
    """

    def __init__(
        self,
        matcher: Matcher,
        vocabulary: Vocabulary,
        *,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
        steering: Steering | None = None,
        restrictions: Restrictions | None = None,
    ) -> None:
        """`min_tokens` holds back the tokens that end an answer while there are others;
        `stop_token_ids` may be drawn only where the grammar can end. `steering`, made for this
        answer, leads it to an end of the grammar; `restrictions` have the last word."""
        self.taken_len = 0
        self.prepared_len = -1
        """The mask of the token after so many is in `mask`."""
        self.ended_len = -1
        """The answer is complete after so many tokens."""
        self.failed_len = -1
        """After so many tokens there is no way on; `failure` says why."""
        self.failure = ""
        self.on_prepared: Callable[[], None] = lambda: None
        """Called when `prepare` is done, from its thread."""
        self._matcher = matcher
        self._matcher_len = 0
        """Of the taken tokens, those that the matcher took."""
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._restrictions = restrictions
        self._stop_token_ids = frozenset(stop_token_ids)
        self._ends = vocabulary.ends
        if stop_token_ids:
            self._ends = self._ends | vocabulary.row_of(np.array(stop_token_ids, dtype=np.int32))
        self._mask: Row = np.zeros(vocabulary.row_len, dtype=np.uint32)
        self._steering = steering
        self._lock = threading.Lock()

    def settled(self, answer_len: int) -> bool:
        """Whether it is known what may follow the first `answer_len` tokens."""
        return answer_len in (self.prepared_len, self.ended_len, self.failed_len)

    def copy_mask(self, answer_len: int, row: Row) -> bool:
        """Write the mask of the token after `answer_len`; False if there is none (yet)."""
        if self.prepared_len != answer_len:
            return False  # without waiting for one that is being made
        with self._lock:
            if self.prepared_len != answer_len:
                return False
            row[:] = self._mask
            return True

    def take(self, answer_len: int, token_id: int) -> None:
        """The token after the first `answer_len` was drawn. Ignored if it is not the next one."""
        with self._lock:
            if self.taken_len != answer_len or self.failed_len == answer_len:
                return
            try:
                taken = self._matcher.advance(token_id)
            except Exception:
                log.exception("a matcher broke")
                taken = False
            self.taken_len += 1
            if self._restrictions is not None:
                self._restrictions.take(token_id)
            if taken:
                self._matcher_len += 1
                if self._steering is not None:
                    self._steering.take(token_id)
                return
            # What ends the request by itself is no token of the grammar.
            if token_id not in self._stop_token_ids:
                why = self._matcher.error or f"token {token_id} does not fit the grammar"
                self._fail(self.taken_len, why)

    def try_prepare(self) -> bool:
        """Have the next mask ready if that takes microseconds. False if `prepare` has to."""
        with self._lock:
            if self.settled(self.taken_len):
                return True
            if self._steering is not None and self._steering.is_slow(self.taken_len):
                return False
            return self._make(self._matcher.try_fill_mask)

    def prepare(self) -> None:
        """Have the next mask ready."""
        with self._lock:
            if self._wants_mask:
                self._make(self._fill)
        self.on_prepared()

    @property
    def batch(self) -> MaskBatch | None:
        """Where `prepare_together` makes its masks; None: `prepare` does."""
        return self._matcher.batch if self._steering is None else None

    @property
    def matcher(self) -> Matcher:
        return self._matcher

    @property
    def _wants_mask(self) -> bool:
        """Whether the next mask is to be made. Nobody asks for one after the last token."""
        return not self.settled(self.taken_len) and self.taken_len != self._max_tokens

    @staticmethod
    def prepare_together(constraints: Sequence[Constraint]) -> None:
        """As `prepare` of each; all have the same `batch`, which makes their masks in one go.

        Nobody else holds the locks of two constraints at a time.
        """
        with contextlib.ExitStack() as locks:
            for constraint in constraints:
                locks.enter_context(constraint._lock)
            wanting = [constraint for constraint in constraints if constraint._wants_mask]
            for constraint, row in zip(wanting, _made_together(wanting), strict=True):
                constraint._make(constraint._fill if row is None else _filling(row))
        for constraint in constraints:
            constraint.on_prepared()

    def go_back(self, answer_len: int) -> None:
        """Forget draws after `answer_len`: the steps that made them count for nothing.

        May only be called while no step of the request is under way.
        """
        with self._lock:
            if self.taken_len > answer_len:
                self._matcher.rollback(max(0, self._matcher_len - answer_len))
                self._matcher_len = min(self._matcher_len, answer_len)
                self.taken_len = answer_len
                if self._restrictions is not None:
                    self._restrictions.go_back(answer_len)
                if self._steering is not None:
                    self._steering.forget()
                self.prepared_len = self.ended_len = self.failed_len = -1
                self._make(self._fill)  # or nobody would: masks are made when a draw was taken

    def _fill(self, row: Row) -> bool:
        self._matcher.fill_mask(row)
        return True

    def _make(self, fill: Callable[[Row], bool]) -> bool:
        matcher, mask, at = self._matcher, self._mask, self.taken_len
        self.prepared_len = -1
        try:
            if not fill(mask):
                return False
            if matcher.error is not None:
                self._fail(at, matcher.error)
            elif matcher.finished or (
                self._steering is not None and self._steering.steer(matcher, at, mask)
            ):
                self.ended_len = at
            else:
                self._hold_back(at)
        except Exception:
            log.exception("a matcher broke")
            self._fail(at, "the grammar's matcher broke")
        return True

    def _hold_back(self, at: int) -> None:
        """Let the tokens that end the answer follow only where they may."""
        mask, can_end = self._mask, None
        if self._stop_token_ids:
            can_end = self._matcher.can_end
            mask[:] = mask | self._ends if can_end else mask & ~self._ends
        if at < self._min_tokens:
            mask &= ~self._ends
        if self._restrictions is not None:
            self._restrictions.apply(mask)
        narrowed = self._stop_token_ids or at < self._min_tokens or self._restrictions is not None
        if narrowed and not mask.any():
            if self._matcher.can_end if can_end is None else can_end:
                self.ended_len = at
            else:
                self._fail(at, "no token that may be drawn fits the grammar, which cannot end here")
            return
        self.prepared_len = at

    def _fail(self, at: int, why: str) -> None:
        self.failure = why
        self.failed_len = at


def _made_together(constraints: Sequence[Constraint]) -> Sequence[Row | None]:
    """Their masks; None for those that cannot be made so."""
    batch = constraints[0].batch if constraints else None
    if batch is not None:
        try:
            return batch.fill_masks([constraint.matcher for constraint in constraints])
        except Exception:
            log.exception("masks could not be made together")
    return [None] * len(constraints)


def _filling(row: Row) -> Callable[[Row], bool]:
    def fill(mask: Row) -> bool:
        mask[:] = row
        return True

    return fill
