"""A runner whose answers one can work out by hand, and which notices every misuse of pages.

In place of keys and values a page stores, per token, a hash of the whole sequence up to that token.
A row's next token is a function of the hash at its last position, so a page that was overwritten,
freed too early or shared with a different prefix changes the answer. `expected_tokens` gives the
answer of an undisturbed request.

The hidden state at a position is `hidden_state` of the hash there.
"""

from __future__ import annotations

import dataclasses
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from jaxsgl.interface import (
    MAX_TOP_LOGPROBS,
    MEMORY_PARTS,
    EngineOperation,
    MemoryPart,
    OperationFailed,
    OperationRefused,
    OperationReport,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeights,
)
from jaxsgl.step import (
    LAST_TOKEN,
    SAMPLE,
    SCRATCH_PAGE,
    Change,
    StepLimits,
    StepMasks,
    StepPlan,
    StepResult,
)

VOCAB_SIZE = 61
EOS_ID = 0


def extend_hash(prefix_hash: int, token_id: int) -> int:
    return zlib.crc32(token_id.to_bytes(4, "little"), prefix_hash)


def draw(prefix_hash: int, seed: int) -> int:
    return zlib.crc32(seed.to_bytes(8, "little", signed=True), prefix_hash) % VOCAB_SIZE


HIDDEN_LEN = 4


def hidden_state(prefix_hash: int) -> NDArray[np.float32]:
    """One number per byte of the hash, and none of them is 0."""
    return np.array([1 + byte for byte in prefix_hash.to_bytes(HIDDEN_LEN)], np.float32)


def expected_embedding(prompt: Sequence[int]) -> list[float]:
    """Of length 1."""
    prefix_hash = 0
    for token_id in prompt:
        prefix_hash = extend_hash(prefix_hash, token_id)
    hidden = hidden_state(prefix_hash)
    return (hidden / np.linalg.norm(hidden)).tolist()


def expected_tokens(
    prompt: Sequence[int], num_tokens: int, *, seed: int = 0, ignore_eos: bool = False
) -> list[int]:
    """What the runner draws after `prompt`, up to and with the end-of-sequence token."""
    prefix_hash = 0
    for token_id in prompt:
        prefix_hash = extend_hash(prefix_hash, token_id)
    answer: list[int] = []
    while len(answer) < num_tokens:
        answer.append(draw(prefix_hash, seed))
        if answer[-1] == EOS_ID and not ignore_eos:
            break
        prefix_hash = extend_hash(prefix_hash, answer[-1])
    return answer


def make_limits(
    *,
    num_pages: int = 65,
    page_size: int = 4,
    num_slots: int = 8,
    max_tokens: int = 32,
    max_logits: int = 8,
    max_pages_per_row: int = 32,
    pack_rows: int = 0,
    mixed_sizes: tuple[int, ...] = (),
    chain_len: int = 1,
) -> StepLimits:
    return StepLimits(
        num_pages=num_pages,
        page_size=page_size,
        num_slots=num_slots,
        max_rows=num_slots,
        max_tokens=max_tokens,
        max_logits=max_logits,
        max_pages_per_row=max_pages_per_row,
        vocab_size=VOCAB_SIZE,
        pack_rows=pack_rows,
        mixed_sizes=mixed_sizes,
        chain_len=chain_len,
    )


@dataclass
class FakePendingStep:
    result: StepResult | Exception

    def wait(self) -> StepResult:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@dataclass
class FakeRunner:
    """Computes each step at dispatch. Steps listed in `failing_steps` raise when they are waited
    for."""

    limits: StepLimits = field(default_factory=make_limits)
    failing_steps: set[int] = field(default_factory=set)
    nan_slots: set[int] = field(default_factory=set)
    recompiles: int = 0
    operations: list[EngineOperation] = field(default_factory=list)
    """Carried out. The model path "refuse" is refused when prepared, "change" when carried out;
    "fail" fails and "break" leaves the runner of no use."""
    released: set[MemoryPart] = field(default_factory=set)
    plans: list[StepPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        limits = self.limits
        self._hash = np.zeros((limits.num_pages, limits.page_size), np.uint32)
        self._table = np.zeros((limits.num_slots, limits.max_pages_per_row), np.int32)
        self._last_token = [0] * limits.num_slots
        self._seed = [0] * limits.num_slots

    def prepare(self, operation: EngineOperation) -> Change:
        order = operation.model_path if isinstance(operation, UpdateWeights) else ""
        if order == "refuse":
            raise OperationRefused("refused on purpose")
        return lambda: self._operate(operation, order)

    def _operate(self, operation: EngineOperation, order: str) -> OperationReport:
        if order == "change":
            raise OperationRefused("changed nothing, on purpose")
        if order == "break":
            raise RuntimeError("broken on purpose")
        self.reset()  # a scheduler that went on with what it had would be noticed
        if order == "fail":
            raise OperationFailed("failed on purpose")
        match operation:
            case ReleaseMemory(parts=parts):
                self.released |= set(parts)
            case ResumeMemory(parts=parts):
                self.released -= set(parts)
            case UpdateWeights():
                pass
        self.operations.append(operation)
        versions = [e.weight_version for e in self.operations if isinstance(e, UpdateWeights)]
        released = tuple(part for part in MEMORY_PARTS if part in self.released)
        version = versions[-1] if versions else None
        return OperationReport(weight_version=version or "default", released=released)

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> FakePendingStep:
        """A constrained draw picks among the allowed tokens as an unconstrained one among all."""
        assert not self.released, "a step without memory"
        self._check_plan(plan)
        self.plans.append(plan)
        if plan.step_id in self.failing_steps:
            return FakePendingStep(RuntimeError(f"step {plan.step_id} failed on purpose"))
        for opening in plan.openings:
            assert opening.sampling.seed is not None
            self._seed[opening.slot] = opening.sampling.seed
        for slot, index, page in plan.page_edits.tolist():
            assert page != SCRATCH_PAGE
            self._table[slot, index] = page
        self._check_packs(plan)
        assert (masks is None) == (not plan.constrained)
        bits = np.zeros((plan.num_rows, -(-VOCAB_SIZE // 32)), np.uint32)
        filled = None if masks is None else masks.fill(bits, lambda: True)
        drawn: list[int] = []
        valid: list[bool] = []
        hidden: list[NDArray[np.float32]] = []
        for row, slot in enumerate(plan.slot.tolist()):
            hashes = self._run_row(plan, row, slot)
            for k in range(plan.logit_start[row], plan.logit_start[row + 1]):
                at = int(plan.logit_idx[k] - plan.q_start[row])
                target = int(plan.logit_target[k])
                hidden.append(hidden_state(hashes[at]))
                skips = filled is not None and filled.skipped[k]
                drawn.append(draw(hashes[at], self._seed[slot]) if target == SAMPLE else target)
                if filled is not None and filled.mask_row[k] >= 0:
                    allowed = np.flatnonzero(
                        np.unpackbits(bits[filled.mask_row[k]].view(np.uint8), bitorder="little")
                    )
                    drawn[-1] = int(allowed[drawn[-1] % len(allowed)])
                valid.append(slot not in self.nan_slots)
                if target == SAMPLE and not skips:
                    self._last_token[slot] = drawn[-1]
        result = self._result(plan, drawn, valid)
        if plan.wants_hidden:
            result = dataclasses.replace(result, hidden=np.stack(hidden))
        if filled is not None and filled.skipped.any():
            result = dataclasses.replace(result, skipped=filled.skipped)
        return FakePendingStep(result)

    def _check_packs(self, plan: StepPlan) -> None:
        """What is said to be shared lies in the same pages."""
        assert (plan.packs is not None) == (plan.mode == "shared")
        if plan.packs is None:
            return
        starts, shared_len = plan.packs
        assert starts[0] == 0 and starts[-1] == plan.num_rows
        sizes = np.diff(starts)
        assert (sizes > 0).all() and (sizes <= self.limits.pack_rows).all()
        assert len(sizes) <= 2 * -(-plan.num_rows // self.limits.pack_rows)
        for start, size, length in zip(starts[:-1], sizes, shared_len, strict=True):
            rows = slice(start, start + size)
            assert length <= plan.kv_len[rows].min()
            pages = self._table[plan.slot[rows], : -(-length // self.limits.page_size)]
            assert (pages == pages[0]).all()

    def _run_row(self, plan: StepPlan, row: int, slot: int) -> list[int]:
        """Store the row's new tokens; the hash after each of them."""
        token_ids = plan.token_ids[plan.q_start[row] : plan.q_start[row + 1]].tolist()
        position = int(plan.kv_len[row]) - len(token_ids)
        write_from = int(plan.write_from[row])
        prefix_hash = int(self._hash[self._place(slot, position - 1)]) if position else 0
        hashes: list[int] = []
        for token_id in token_ids:
            known = self._last_token[slot] if token_id == LAST_TOKEN else token_id
            prefix_hash = extend_hash(prefix_hash, known)
            if position >= write_from:
                self._hash[self._place(slot, position)] = prefix_hash
            assert self._hash[self._place(slot, position)] == prefix_hash
            hashes.append(prefix_hash)
            position += 1
            if plan.mode == "chain":
                self._last_token[slot] = draw(prefix_hash, self._seed[slot])
        return hashes

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        page_size = self.limits.page_size
        return int(self._table[slot, position // page_size]), position % page_size

    def _result(self, plan: StepPlan, drawn: list[int], valid: list[bool]) -> StepResult:
        token_ids: NDArray[np.int32] = np.array(drawn, np.int32)
        logprobs = top_ids = top_logprobs = None
        if plan.num_top_logprobs is not None:
            logprobs = -(token_ids.astype(np.float32) + 1)
            top_ids = np.tile(np.arange(MAX_TOP_LOGPROBS, dtype=np.int32), (len(drawn), 1))
            top_logprobs = -(top_ids.astype(np.float32) + 1)
        return StepResult(
            plan.step_id, token_ids, np.array(valid, np.bool_), logprobs, top_ids, top_logprobs
        )

    def _check_plan(self, plan: StepPlan) -> None:
        limits = self.limits
        # Lists: for arrays this short NumPy costs several times as much.
        begin = plan.q_start.tolist()
        num_new = [end - start for start, end in pairwise(begin)]
        logit_idx = plan.logit_idx.tolist()
        assert 0 < plan.num_rows <= limits.max_rows
        assert min(num_new) > 0
        assert all(map(operator.ge, plan.kv_len.tolist(), num_new))
        assert len(set(plan.slot.tolist())) == plan.num_rows
        assert all(first < second for first, second in pairwise(logit_idx))
        if plan.mode == "chain":
            assert 1 < max(num_new) <= limits.chain_len
            assert all(token_id == LAST_TOKEN for token_id in np.delete(plan.token_ids, begin[:-1]))
            assert logit_idx == list(range(plan.num_tokens))
            assert set(plan.logit_target.tolist()) == {SAMPLE}
            assert not plan.constrained and not plan.wants_hidden
            assert plan.num_top_logprobs is None and not plan.openings
            return
        assert plan.num_tokens <= limits.max_tokens
        assert len(plan.logit_idx) <= limits.max_logits
        if plan.mode != "mixed":
            assert max(num_new) == 1 and set(plan.logit_target.tolist()) == {SAMPLE}
            assert not plan.wants_hidden
            assert len(plan.logit_idx) == plan.num_rows
