"""A scheduler actor and a runner actor around a fake runner, and what they said."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from jaxsgl.actors.grammar_actor import GrammarActor
from jaxsgl.actors.messages import Admit, Released, StepOutputs, ToFront
from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.actors.scheduler_actor import SchedulerActor
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.grammar.vocabulary import Vocabulary as TokenTrie
from jaxsgl.interface import Finish, SamplingParams
from jaxsgl.scheduling.outputs import RowOutput
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.step import PendingStep, StepMasks, StepPlan, StepResult
from tests.actors.waiting import until
from tests.fake_runner import EOS_ID, VOCAB_SIZE, FakeRunner, expected_tokens

TOKEN_BYTES = [b""] + [bytes([64 + i]) for i in range(1, VOCAB_SIZE)]
CAPACITY = 16


@dataclass
class HeldStep:
    pending: PendingStep
    permits: threading.Semaphore

    def wait(self) -> StepResult:
        self.permits.acquire()
        return self.pending.wait()


@dataclass
class HeldRunner(FakeRunner):
    """A runner of which each step lasts until the test permits its end."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> HeldStep:
        return HeldStep(super().dispatch(plan, masks), self.permits)

    def let_all_end(self) -> None:
        self.permits.release(10_000)


class Rig:
    """Construct it in a running loop. `close` ends it and sees that nothing of it is left."""

    def __init__(
        self,
        runner: FakeRunner | None = None,
        *,
        overlap: bool = True,
        grammars: GrammarActor | None = None,
        no_grammars: bool = False,
    ) -> None:
        self.runner = runner or FakeRunner()
        self.sent: list[ToFront] = []
        self._threads = set(threading.enumerate())
        limits = self.runner.limits
        cache = KVCacheManager(limits.num_pages, limits.page_size)
        settings = SchedulingSettings(max_len=limits.max_context_len)
        self.scheduler = Scheduler(limits, cache, Vocabulary(TOKEN_BYTES, (EOS_ID,)), settings)
        self.runner_actor = RunnerActor(self.runner)
        self.grammars = grammars or GrammarActor(
            lambda: TokenTrie(TOKEN_BYTES, (EOS_ID,), VOCAB_SIZE)
        )
        self.actor = SchedulerActor(
            self.scheduler,
            self.runner_actor,
            self.sent.append,
            grammars=None if no_grammars else self.grammars,
            overlap=overlap,
            capacity=CAPACITY,
        )

    # What goes in.

    def admit(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int = 8,
        *,
        ignore_eos: bool = True,
        end_token_ids: tuple[int, ...] = (),
    ) -> None:
        sampling = SamplingParams(
            max_tokens=max_tokens, seed=0, ignore_eos=ignore_eos, stop_token_ids=end_token_ids
        )
        self.actor.deliver(Admit(request_id, prompt, sampling))

    # What came out.

    def rows(self, request_id: str) -> list[RowOutput]:
        outputs = [message for message in self.sent if isinstance(message, StepOutputs)]
        return [row for out in outputs for row in out.rows if row.request_id == request_id]

    def tokens(self, request_id: str) -> list[int]:
        return [token_id for row in self.rows(request_id) for token_id in row.token_ids]

    def finish(self, request_id: str) -> Finish | None:
        """How the request ended; None while it runs. Nothing may be said after that."""
        rows = self.rows(request_id)
        assert all(row.finish is None for row in rows[:-1])
        return rows[-1].finish if rows else None

    @property
    def released(self) -> list[str]:
        messages = [message for message in self.sent if isinstance(message, Released)]
        return [request_id for message in messages for request_id in message.request_ids]

    async def ended(self, *request_ids: str) -> None:
        """Returns when nothing is left of these requests, each of which was told how it ended."""
        await until(lambda: set(request_ids) <= set(self.released))
        assert all(self.finish(request_id) for request_id in request_ids)

    # What must hold.

    async def check_idle(self) -> None:
        """Every page, slot and lock is back, and the next answer is right."""
        assert self.scheduler.idle
        self.check_books()
        prompt = [7, 3, 5]
        self.admit("idle", prompt)
        await self.ended("idle")
        assert self.tokens("idle") == expected_tokens(prompt, 8, ignore_eos=True)
        self.check_books()

    def check_books(self) -> None:
        self.scheduler.check()
        stats = self.actor.stats()
        assert stats.num_running == stats.num_waiting == stats.locks == stats.tokens_held == 0
        assert stats.slots_free == stats.slots_total
        assert stats.pages_free + stats.pages_cached == stats.pages_total

    async def close(self) -> None:
        if isinstance(self.runner, HeldRunner):
            self.runner.let_all_end()
        await self.actor.stop(5)
        await self.grammars.stop()
        await self.runner_actor.stop()
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        left = set(threading.enumerate()) - self._threads
        assert not [thread.name for thread in left if thread.name.startswith(("device", "fetch"))]
