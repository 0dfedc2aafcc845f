"""What host and device exchange once per step: a StepPlan goes down, a StepResult comes back.

The scheduler writes plans without knowing jax; a runner executes them without knowing requests.
Everything is addressed by *slot*, a request's place in the device-resident arrays (page table,
sampling parameters, last token).

Axes: `rows` requests in this step, `tokens` their new tokens in row order, `logits` the positions
whose logits are wanted, `edits` changed page-table entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxsgl.interface import EngineOperation, OperationReport, SamplingParams

LAST_TOKEN = -1
"""In `StepPlan.token_ids`: take the token that the slot sampled last, which the host may not know
yet."""
SAMPLE = -1
"""In `StepPlan.logit_target`: draw a token here."""
SCRATCH_PAGE = 0
"""The page that padding writes to. No request ever owns it."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What a runner can do in one step, and what it holds. Fixed at start."""

    num_pages: int
    """Pages in the device arrays, the scratch page included."""
    page_size: int
    """Tokens per page."""
    num_slots: int
    max_rows: int
    max_tokens: int
    """New tokens per step."""
    max_logits: int
    """Wanted logits per step; at least max_rows."""
    max_pages_per_row: int
    vocab_size: int
    pack_rows: int = 0
    """Most rows that can read a shared prefix together; 0 where that is not to be had."""
    mixed_sizes: tuple[int, ...] = ()
    """Numbers of tokens to which steps with prompts are padded, ascending up to max_tokens."""
    chain_len: int = 1
    """Most tokens of a row in a "chain" step; 1 where there are none. `max_tokens` and `max_logits`
    do not bind those."""

    @property
    def max_context_len(self) -> int:
        return self.max_pages_per_row * self.page_size


@dataclass(frozen=True, slots=True)
class SlotOpening:
    """A slot is given to a request: its device-resident sampling state starts afresh."""

    slot: int
    sampling: SamplingParams
    """With `seed` set."""
    token_ids: NDArray[np.int32]
    """Prompt, and after a preemption the tokens generated before it: what the penalties look at."""
    prompt_len: int
    """How many of `token_ids` are prompt; the rest counts as generated."""
    end_token_ids: tuple[int, ...]
    """Ids that `min_tokens` holds back (end of sequence and stop ids)."""


class DrawConstraint(Protocol):
    """What holds the draws of one request to a form. A mask is a row of words: bit i % 32 of word
    i // 32 says whether token i may be drawn."""

    @property
    def taken_len(self) -> int:
        """Tokens of the answer that it has followed."""
        ...

    def settled(self, answer_len: int) -> bool:
        """Whether it is known what may follow the first `answer_len` tokens."""
        ...

    def copy_mask(self, answer_len: int, row: NDArray[np.uint32]) -> bool:
        """Write the mask of the token after `answer_len`; False if there is none (yet)."""
        ...

    def take(self, answer_len: int, token_id: int) -> None:
        """The token after the first `answer_len` was drawn."""
        ...

    def try_prepare(self) -> bool:
        """Have the next mask ready if that takes microseconds. False if `prepare` has to."""
        ...

    def prepare(self) -> None:
        """Have the next mask ready."""
        ...


@dataclass(frozen=True, slots=True)
class ConstrainedDraw:
    """A draw that needs a mask of tokens, which is made while the forward pass runs."""

    logit: int
    """Index into the step's wanted logits."""
    answer_len: int
    """Tokens of the answer before the one to be drawn."""
    constraint: DrawConstraint


StepMode = Literal["decode", "shared", "chain", "mixed"]
"""decode: every row has exactly one token, and its logits are wanted. shared: besides, rows that
begin alike lie together, see `StepPacks`. chain: rows have up to `StepLimits.chain_len` tokens,
each but the first the draw of the one before, and the logits of all are wanted; nothing but a
slot's temperature and filters enters into the draws: no penalties, no bias, no mask, no
log-probabilities."""


class StepPacks(NamedTuple):
    """Rows that begin with the same pages."""

    start: NDArray[np.int32]
    """[packs + 1]: pack p is rows start[p] to start[p + 1], at most `StepLimits.pack_rows`. There
    are at most twice the packs that full ones would be, and every row is in one."""
    shared_len: NDArray[np.int32]
    """[packs]: leading tokens that lie in the same pages in all of a pack's rows."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One device step. All arrays are int32 and unpadded."""

    step_id: int
    mode: StepMode
    slot: NDArray[np.int32]
    """[rows]"""
    q_start: NDArray[np.int32]
    """[rows + 1]: row r's tokens are token_ids[q_start[r]:q_start[r + 1]]."""
    token_ids: NDArray[np.int32]
    """[tokens], LAST_TOKEN where the device knows better, as it does behind a chain's first."""
    kv_len: NDArray[np.int32]
    """[rows]: tokens of the row with KV once this step has run. The last new token has position
    kv_len - 1."""
    write_from: NDArray[np.int32]
    """[rows]: the row's tokens before this position lie in shared pages, KV and all: a step that
    computes one of them again, for its logits, does not write it."""
    logit_idx: NDArray[np.int32]
    """[logits]: index into token_ids of each position whose logits are wanted, ascending."""
    logit_start: NDArray[np.int32]
    """[rows + 1]: row r wants logit_idx[logit_start[r]:logit_start[r + 1]]."""
    logit_target: NDArray[np.int32]
    """[logits]: SAMPLE, or the token id whose log-probability is wanted instead of a draw."""
    page_edits: NDArray[np.int32]
    """[edits, 3]: (slot, index in the slot's page table, page), to be applied before the step."""
    packs: StepPacks | None = None
    """In "shared" steps."""
    openings: tuple[SlotOpening, ...] = ()
    """Applied before the step."""
    num_top_logprobs: int | None = None
    """None: the host wants no log-probabilities; otherwise alternatives per position that some row
    wants."""
    wants_hidden: bool = False
    """Whether the host wants the hidden states; in "mixed" steps alone."""
    constrained: tuple[ConstrainedDraw, ...] = ()
    """The draws that must wait for a mask. Their masks are no part of the plan: they depend on
    draws of the step before, and come beside it."""

    @property
    def num_rows(self) -> int:
        return len(self.slot)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step drew, one entry per wanted logit, in the plan's order."""

    step_id: int
    token_ids: NDArray[np.int32]
    """[logits]: the token drawn, or the target itself."""
    valid: NDArray[np.bool_]
    """[logits]: false where the logits were not finite; such a row must not go on."""
    logprobs: NDArray[np.float32] | None = None
    """[logits]: natural log-probability of token_ids under the model's own distribution
    (temperature 1, after logit_bias and penalties), where the plan asked for log-probabilities."""
    top_ids: NDArray[np.int32] | None = None
    """[logits, MAX_TOP_LOGPROBS], best first, where the plan asked for alternatives."""
    top_logprobs: NDArray[np.float32] | None = None
    skipped: NDArray[np.bool_] | None = None
    """[logits]: where no token was drawn because its mask was late or is not needed any more; None
    if there is no such place. The slot's sampling state is as it was."""
    hidden: NDArray[np.float32] | None = None
    """[logits, embed]: what the logits are made of, the hidden states after the last norm, where
    the plan asked for them."""


@dataclass(frozen=True, slots=True)
class MaskRows:
    """Which mask each draw of a step is subject to."""

    mask_row: NDArray[np.int32]
    """[logits]: row of the masks, -1 for none."""
    skipped: NDArray[np.bool_]
    """[logits]: where no token is to be drawn."""


class StepMasks(Protocol):
    """The masks of a dispatched step, while its forward pass runs."""

    def fill(self, masks: NDArray[np.uint32], is_due: Callable[[], bool]) -> MaskRows:
        """Write them into the first rows of `masks` [rows, words].

        Waits for those that are not ready, but hardly longer than until `is_due`: draws whose masks
        are late then are skipped.
        """
        ...


Change = Callable[[], OperationReport]
"""Carries out a prepared operation; see `Runner.prepare`."""


class PendingStep(Protocol):
    """A step that was dispatched and not yet read."""

    def wait(self) -> StepResult:
        """Block until the device has finished the step. Raises what the device raised."""
        ...


class Runner(Protocol):
    """Executes plans in order. `dispatch` and `reset` are called from one thread, `wait` from
    any."""

    @property
    def limits(self) -> StepLimits: ...

    @property
    def recompiles(self) -> int:
        """Programs compiled since the runner said it was ready; anything but 0 is a defect."""
        ...

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> PendingStep:
        """Start a step and return without waiting for it. Forward and sampling are separate
        programs: `masks`, given if the plan has constrained draws, are waited for between them."""
        ...

    def prepare(self, operation: EngineOperation) -> Change:
        """Do what can be done of an operation while steps run, in any thread, and return the rest.

        Raises `interface.OperationRefused`. The rest is called from the thread of `dispatch` while
        no step is unfinished; after it the KV cache is empty. It raises OperationRefused if it has
        changed nothing, OperationFailed if only the KV cache was emptied, and anything else if the
        runner cannot be used any more.
        """
        ...

    def reset(self) -> None:
        """Replace the KV cache and slot state after a failed step; everything cached is lost."""
        ...
