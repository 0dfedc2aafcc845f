"""An engine in this process whose device is a clock: all that the host does is real.

Steps are packed as for a GPU and then take the time they are said to. What they draw is random
among the tokens that may be drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxsgl.actors.grammar_actor import GrammarActor
from jaxsgl.actors.messages import Ready, Speed, ToFront, ToReplica
from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.actors.scheduler_actor import SchedulerActor
from jaxsgl.actors.timeline import Span, Timeline
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.config import EngineConfig
from jaxsgl.grammar.vocabulary import Vocabulary as TokenTrie
from jaxsgl.heap import settle
from jaxsgl.interface import EngineOperation, EngineStats, ModelInfo, OperationRefused
from jaxsgl.offline.offline_engine import OfflineEngine
from jaxsgl.runner.batch import draw_fields, forward_fields, pack_draw, pack_forward
from jaxsgl.runner.buckets import make_buckets, pick_bucket
from jaxsgl.runner.platform import PLATFORMS
from jaxsgl.runner.slot_updates import pack_updates
from jaxsgl.runner.token_masks import mask_fields, pack_masks
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.step import Change, StepLimits, StepMasks, StepPlan, StepResult
from jaxsgl.tokenizer import TokenIdsOnly
from jaxsgl.tokenizer.tokenizer import Tokenizer

PAGE_SIZE = 16
CONTEXT_LEN = 8192
_SIZES = PLATFORMS["gpu"].sizes


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What the device needs for a step."""

    forward_s: float
    """Of no row."""
    row_s: float
    """More for each row."""
    draw_s: float


class ClockedStep:
    """A step on its way. Implements `step.PendingStep`."""

    def __init__(
        self,
        plan: StepPlan,
        end_s: float,
        draws: Callable[[], NDArray[np.int32]],
        skipped: NDArray[np.bool_] | None,
    ) -> None:
        self._plan = plan
        self._end_s = end_s
        self._draws = draws
        self._skipped = skipped

    def wait(self) -> StepResult:
        token_ids = self._draws()  # the device's work, done within its time
        sleep_until(self._end_s)
        valid = np.ones(len(token_ids), np.bool_)
        return StepResult(self._plan.step_id, token_ids, valid, skipped=self._skipped)


class ClockedRunner:
    """Implements `step.Runner`."""

    recompiles = 0

    def __init__(self, limits: StepLimits, times: StepTimes) -> None:
        self.limits = limits
        self._times = times
        self._buckets = make_buckets(limits, _SIZES)
        self._free_s = 0.0
        """When the device is done with all that was dispatched."""
        self._rng = np.random.default_rng(0)
        self._padding_slot = limits.num_slots

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> ClockedStep:
        bucket = pick_bucket(self._buckets, plan)
        for _ in pack_updates(plan):
            pass
        pack_forward(plan, forward_fields(bucket), self._padding_slot)
        begin_s = max(time.perf_counter(), self._free_s)
        done_s = begin_s + self._times.forward_s + self._times.row_s * plan.num_rows
        vector = skipped = None
        fields = mask_fields(bucket.num_logits, self.limits)
        if masks is not None:
            vector, skipped = pack_masks(fields, masks, lambda: time.perf_counter() >= done_s)
        pack_draw(plan, draw_fields(bucket.num_logits), self._padding_slot, skipped)
        self._free_s = max(done_s, time.perf_counter()) + self._times.draw_s

        def draws() -> NDArray[np.int32]:
            num_logits = len(plan.logit_idx)
            if vector is None:
                drawn = self._rng.integers(1, self.limits.vocab_size, num_logits)
                return drawn.astype(np.int32)
            arrays = fields.views(vector)
            return self._pick(arrays["masks"].view(np.uint32), arrays["mask_row"][:num_logits])

        no_skips = skipped is None or not skipped.any()
        return ClockedStep(plan, self._free_s, draws, None if no_skips else skipped)

    def _pick(self, masks: NDArray[np.uint32], mask_row: NDArray[np.int32]) -> NDArray[np.int32]:
        """For each row an allowed token: of the first word with one, from a random word on."""
        start = int(self._rng.integers(masks.shape[1]))
        turned = np.roll(masks[np.maximum(mask_row, 0)], -start, axis=1)
        word = (turned != 0).argmax(1)
        bits = turned[np.arange(len(word)), word]
        lowest = np.log2((bits & -bits.astype(np.int64)).clip(1)).astype(np.int64)
        token_ids = (word + start) % masks.shape[1] * 32 + lowest
        return np.where(mask_row < 0, 1, token_ids).astype(np.int32)

    def prepare(self, operation: EngineOperation) -> Change:
        raise OperationRefused("a clock has nothing to change")

    def reset(self) -> None:
        pass


class ClockedReplica:
    """A `local_engine.LocalReplica` whose runner is a `ClockedRunner`."""

    def __init__(
        self,
        actor: SchedulerActor,
        runner: RunnerActor,
        grammars: GrammarActor,
    ) -> None:
        self._actor = actor
        self._runner = runner
        self._grammars = grammars

    def deliver(self, message: ToReplica) -> None:
        self._actor.deliver(message)

    def stats(self) -> EngineStats:
        return self._actor.stats()

    def speed(self) -> Speed:
        return self._actor.speed()

    def step_trace(self) -> dict[str, object]:
        return {}

    async def run(self) -> None:
        try:
            await self._actor.died
        finally:
            await self._actor.stop(5)
            await self._grammars.stop()
            await self._runner.stop()


class ClockedEngine(OfflineEngine):
    """An engine of so many rows and pages, whose vocabulary is that of `tokenizer`."""

    def __init__(
        self,
        times: StepTimes,
        *,
        num_rows: int,
        num_pages: int,
        vocab_size: int = 128_256,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.timeline = Timeline()
        limits = StepLimits(
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            num_slots=num_rows,
            max_rows=num_rows,
            max_tokens=8192,
            max_logits=1024,
            max_pages_per_row=CONTEXT_LEN // PAGE_SIZE,
            vocab_size=vocab_size,
            pack_rows=16,
            mixed_sizes=tuple(size for size in _SIZES.mixed_tokens if size <= 8192),
        )
        texts = [] if tokenizer is None else tokenizer.token_bytes
        ends = (0,) if tokenizer is None else tokenizer.eos_token_ids

        async def start(config: EngineConfig, send: Callable[[ToFront], None]) -> ClockedReplica:
            cache = KVCacheManager(num_pages, PAGE_SIZE)
            settings = SchedulingSettings(
                max_len=CONTEXT_LEN, policy=config.schedule_policy, fair=config.fair_queue
            )
            runner = RunnerActor(ClockedRunner(limits, times), self.timeline)
            grammars = GrammarActor(lambda: TokenTrie(texts, ends, vocab_size))
            actor = SchedulerActor(
                Scheduler(limits, cache, Vocabulary(texts, ends), settings),
                runner,
                send,
                grammars=grammars,
                overlap=config.overlap,
                capacity=4 * (num_rows + config.max_queued_requests) + 64,
                timeline=self.timeline,
            )
            await actor.start()
            settle()
            model = ModelInfo(
                name="clock",
                architecture="clock",
                vocab_size=vocab_size,
                context_len=CONTEXT_LEN,
                eos_token_ids=ends,
                has_chat_template=False,
                num_devices=1,
                mesh="tp=1",
                platform="clock",
                attention_backend="clock",
            )
            send(Ready(model, CONTEXT_LEN - 1, page_size=PAGE_SIZE))
            return ClockedReplica(actor, runner, grammars)

        super().__init__(EngineConfig(), tokenizer or TokenIdsOnly(vocab_size), start)

    def spans(self) -> list[Span]:
        """Of the latest steps."""
        return self.timeline.spans()


def sleep_until(moment_s: float) -> None:
    """On the clock of `time.perf_counter`."""
    rest_s = moment_s - time.perf_counter()
    if rest_s > 0:
        time.sleep(rest_s)
