"""The device's side of a replica: weights, KV pages, slot state, and one step after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from numpy.typing import NDArray

from jaxsgl.interface import EngineOperation, OperationReport, SamplingParams
from jaxsgl.models.sharding import Layout, placed
from jaxsgl.models.weights import Model
from jaxsgl.runner.batch import pack_draw, pack_forward
from jaxsgl.runner.buckets import Bucket, pick_bucket
from jaxsgl.runner.chain import drawn_in_chain, pack_chain
from jaxsgl.runner.compile_guard import CompileGuard
from jaxsgl.runner.device_memory import DeviceMemory
from jaxsgl.runner.operations import Respread, RunnerOperations, WeightSource, no_other_spread
from jaxsgl.runner.programs import Call, Programs, split_weights
from jaxsgl.runner.sampler import DRAW_KINDS, INVALID, DrawKind, Drawn, draw_kind
from jaxsgl.runner.slot_state import pack_opening
from jaxsgl.runner.slot_updates import inert_update, pack_updates
from jaxsgl.runner.token_masks import pack_masks
from jaxsgl.step import (
    Change,
    MaskRows,
    PendingStep,
    SlotOpening,
    StepLimits,
    StepMasks,
    StepPlan,
    StepResult,
)


class DispatchedStep:
    """A step on its way. Implements `step.PendingStep`."""

    def __init__(
        self,
        plan: StepPlan,
        drawn: Drawn,
        skipped: NDArray[np.bool_] | None = None,
        hidden: jax.Array | None = None,
    ) -> None:
        self._step_id = plan.step_id
        self._skipped = None if skipped is None or not skipped.any() else skipped
        self._num_logits = len(plan.logit_idx)
        wanted: list[jax.Array | None] = [drawn.token_ids]
        if plan.num_top_logprobs is not None:
            wanted.append(drawn.logprobs)
        if plan.num_top_logprobs:
            wanted += [drawn.top_ids, drawn.top_logprobs]
        self._fetched = [array for array in wanted if array is not None]
        self._hidden = hidden if plan.wants_hidden else None
        for array in (*self._fetched, *([] if self._hidden is None else [self._hidden])):
            array.copy_to_host_async()

    def wait(self) -> StepResult:
        token_ids, *logprobs = (np.asarray(array)[: self._num_logits] for array in self._fetched)
        valid = token_ids != INVALID
        hidden = None
        if self._hidden is not None:
            hidden = np.asarray(self._hidden)[: self._num_logits].astype(np.float32)
        return StepResult(
            self._step_id, token_ids, valid, *logprobs, skipped=self._skipped, hidden=hidden
        )


class DispatchedChain:
    """The same for a chain of steps."""

    def __init__(self, plan: StepPlan, drawn: jax.Array) -> None:
        self._plan = plan
        self._drawn = drawn
        drawn.copy_to_host_async()

    def wait(self) -> StepResult:
        token_ids = drawn_in_chain(self._plan, np.asarray(self._drawn))
        return StepResult(self._plan.step_id, token_ids, token_ids != INVALID)


class ModelRunner:
    """Executes plans for one model. Implements `step.Runner`; see there for who may call what."""

    def __init__(
        self,
        model: Model,
        programs: Programs,
        source: WeightSource,
        respread: Respread = no_other_spread,
        *,
        forbid_recompiles: bool = False,
    ) -> None:
        """Allocate the KV pages of programs that were compiled. Call `warm_up` before the first
        plan. Other weights come from `source`, programs for other meshes from `respread`."""
        self._padding_slot = programs.limits.num_slots
        self._memory = DeviceMemory(split_weights(model), programs)
        self._operations = RunnerOperations(self._memory, source, respread, self._run_all)
        self._draw_rank = np.zeros(programs.limits.num_slots + 1, np.int8)
        """Index into `draw_kinds` of what each slot's draws need."""
        self._guard = CompileGuard(forbid=forbid_recompiles)

    def close(self) -> None:
        """Give the device's memory back. Nothing may be called after this."""
        self._guard.close()
        self._memory.close()

    @property
    def limits(self) -> StepLimits:
        return self.programs.limits

    @property
    def programs(self) -> Programs:
        return self._memory.programs

    @property
    def layout(self) -> Layout:
        return self.programs.layout

    @property
    def backend(self) -> str:
        """The kernels in use."""
        return self.programs.backend

    @property
    def recompiles(self) -> int:
        return self._guard.recompiles

    def reset(self) -> None:
        self._memory.clear()

    def prepare(self, operation: EngineOperation) -> Change:
        with self._guard.lifted():
            change = self._operations.prepare(operation)

        def unguarded() -> OperationReport:
            with self._guard.lifted():
                return change()

        return unguarded

    def warm_up(self) -> None:
        """Run every program once with nothing but padding: loading it takes a GPU half a second.
        From the end of this on `recompiles` counts."""
        self._run_all()
        self._guard.arm()

    def _run_all(self) -> None:
        for call in self.programs.calls():
            self._run_once(call)
            # One at a time: there is memory for the temporaries of one step.
            jax.block_until_ready((self._memory.state, self._memory.kv))

    def _run_once(self, call: Call) -> None:
        """Without a row."""
        memory, vector = self._memory, self._inert_vector(call)
        match call.kind:
            case "forward":
                _, _, memory.kv = call.run(memory.weights, memory.kv, memory.state, vector)
            case "chain":
                program = self.programs.chain[call.key]
                (_, memory.kv), memory.state = program.run(
                    memory.state, memory.weights, memory.kv, vector
                )
            case "draw":
                program = self.programs.draw[call.key]
                _, memory.state = program.run(memory.state, _zeros(call.args[2]), vector)
            case "mask":
                call.run(_zeros(call.args[0]), vector)
            case "slots" if call.key == "open":
                _, memory.state = self.programs.open.run(memory.state, vector)
            case "slots":
                _, memory.state = self.programs.update[call.key].run(memory.state, vector)

    def _inert_vector(self, call: Call) -> NDArray[np.int32]:
        programs, padding_slot = self.programs, self._padding_slot
        match call.kind:
            case "forward":
                plan = dataclasses.replace(NOTHING, mode=call.key.mode)
                return pack_forward(plan, programs.forward[call.key].fields, padding_slot)
            case "chain":
                return pack_chain(NOTHING, programs.chain[call.key].fields, padding_slot)
            case "draw":
                return pack_draw(NOTHING, programs.draw[call.key].fields, padding_slot)
            case "mask":
                return pack_masks(programs.mask[call.key].fields, _NoMasks(), lambda: True)[0]
            case "slots" if call.key == "open":
                opening = SlotOpening(padding_slot, SamplingParams(), np.zeros(0, np.int32), 0, ())
                return pack_opening(opening, programs.open.fields, self.limits.vocab_size)
            case "slots":
                return inert_update(call.key)

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> PendingStep:
        bucket = pick_bucket(self.programs.buckets, plan)
        self._update_slots(plan)
        for opening in plan.openings:
            kind = draw_kind(opening.sampling)
            self._draw_rank[opening.slot] = self._rank(kind)
            if kind == "full":
                self._open_slot(opening)
        if plan.mode == "chain":
            return self._run_chain(plan, bucket)
        return self._run(plan, bucket, self._draw_kind(plan), masks)

    def _draw_kind(self, plan: StepPlan) -> DrawKind:
        """The least that draws every row of the plan."""
        if plan.num_top_logprobs is not None:
            return "full"
        return self.programs.draw_kinds[self._draw_rank[plan.slot].max()]

    def _rank(self, kind: DrawKind) -> int:
        """Index of the least of the compiled ways to draw that can do what `kind` does."""
        enough = DRAW_KINDS[DRAW_KINDS.index(kind) :]
        return next(i for i, each in enumerate(self.programs.draw_kinds) if each in enough)

    def _update_slots(self, plan: StepPlan) -> None:
        for size, packed in pack_updates(plan):
            _, self._memory.state = self.programs.update[size].run(self._memory.state, packed)

    def _open_slot(self, opening: SlotOpening) -> None:
        program = self.programs.open
        packed = pack_opening(opening, program.fields, self.limits.vocab_size)
        _, self._memory.state = program.run(self._memory.state, packed)

    def _run(
        self, plan: StepPlan, bucket: Bucket, kind: DrawKind, masks: StepMasks | None = None
    ) -> DispatchedStep:
        forward = self.programs.forward[bucket]
        draw = self.programs.draw[kind, bucket.num_logits]
        packed = pack_forward(plan, forward.fields, self._padding_slot)
        memory = self._memory
        logits, hidden, memory.kv = forward.run(memory.weights, memory.kv, memory.state, packed)
        skipped = None
        if masks is not None:
            # Made while the forward runs.
            mask = self.programs.mask[bucket.num_logits]
            packed, skipped = pack_masks(mask.fields, masks, logits.is_ready)
            logits = mask.run(logits, packed)
        packed = pack_draw(plan, draw.fields, self._padding_slot, skipped)
        drawn, memory.state = draw.run(memory.state, logits, packed)
        return DispatchedStep(plan, drawn, skipped, hidden)

    def _run_chain(self, plan: StepPlan, bucket: Bucket) -> DispatchedChain:
        program, memory = self.programs.chain[bucket], self._memory
        packed = pack_chain(plan, program.fields, self._padding_slot)
        (drawn, memory.kv), memory.state = program.run(
            memory.state, memory.weights, memory.kv, packed
        )
        return DispatchedChain(plan, drawn)


_NO_INTS, _START = np.zeros(0, np.int32), np.zeros(1, np.int32)
NOTHING = StepPlan(
    step_id=-1,
    mode="decode",
    slot=_NO_INTS,
    q_start=_START,
    token_ids=_NO_INTS,
    kv_len=_NO_INTS,
    write_from=_NO_INTS,
    logit_idx=_NO_INTS,
    logit_start=_START,
    logit_target=_NO_INTS,
    page_edits=np.zeros((0, 3), np.int32),
)
"""A step without rows."""


class _NoMasks:
    """Of a step without rows."""

    def fill(self, masks: NDArray[np.uint32], is_due: Callable[[], bool]) -> MaskRows:
        return MaskRows(_NO_INTS, np.zeros(0, np.bool_))


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    assert like.sharding is not None
    return placed(np.zeros(like.shape, like.dtype), like.sharding)
