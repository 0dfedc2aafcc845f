"""The host's side of a replica, without actors: a scheduler over a real runner."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import SamplingParams, TokenLogprob
from jaxsgl.runner.runner import ModelRunner
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.step import PendingStep


@dataclass
class Answer:
    token_ids: list[int]
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)


class Host:
    """Drives the scheduler over a runner, which it takes for itself."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        radix: bool = True,
        chunk: int = 256,
        overlap: bool = True,
        chains: bool = False,
    ) -> None:
        runner.reset()
        chain_len = runner.limits.chain_len if chains else 1
        limits = replace(runner.limits, max_tokens=chunk, chain_len=chain_len)
        self.modes: set[str] = set()
        """Of the steps so far."""
        self._runner = runner
        self._depth = 1 if overlap else 0
        self._in_flight: deque[PendingStep] = deque()
        self._scheduler = Scheduler(
            limits,
            KVCacheManager(limits.num_pages, limits.page_size, radix=radix),
            Vocabulary([], ()),
            SchedulingSettings(max_len=limits.max_context_len),
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[Answer]:
        """Answers to prompts that come all at once, drawn greedily and through any end token."""
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0, seed=0, ignore_eos=True)
        return self.ask([(prompt, sampling) for prompt in prompts])

    def ask(self, prompts: list[tuple[list[int], SamplingParams]]) -> list[Answer]:
        """Answers to requests that come all at once."""
        for n, (prompt, sampling) in enumerate(prompts):
            self._scheduler.add(str(n), prompt, sampling)
        answers = [Answer([]) for _ in prompts]
        while not self._scheduler.idle:
            self._step()
            for row in self._scheduler.take_outputs().rows:
                answer = answers[int(row.request_id)]
                answer.token_ids += row.token_ids
                answer.cached_tokens = row.cached_tokens
                answer.logprobs += row.logprobs or []
                answer.prompt_logprobs += row.prompt_logprobs or []
        self._scheduler.check()
        return answers

    def _step(self) -> None:
        plan = self._scheduler.plan_step()
        if plan is not None:
            self.modes.add(plan.mode)
            self._in_flight.append(self._runner.dispatch(plan))
        if plan is None or len(self._in_flight) > self._depth:
            self._scheduler.apply(self._in_flight.popleft().wait())
