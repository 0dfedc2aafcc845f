"""Plays the scheduler's part for a runner under test: hands out slots and pages, writes plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxsgl.interface import SamplingParams
from jaxsgl.step import (
    LAST_TOKEN,
    SAMPLE,
    Runner,
    SlotOpening,
    StepLimits,
    StepPlan,
    StepResult,
)

GREEDY = SamplingParams(temperature=0.0, seed=0)


@dataclass
class Request:
    prompt: list[int]
    slot: int
    sampling: SamplingParams
    end_ids: tuple[int, ...]
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    """Tokens whose KV is on the device once everything dispatched has run."""
    drawn: list[int] = field(default_factory=list)
    opened: bool = False
    prompt_len: int | None = None
    """How much of `prompt` is prompt; None is all. After a preemption the rest was generated."""


@dataclass(frozen=True)
class Work:
    """What a request does in a step: its next `num_tokens` tokens; decode when it has no prompt
    left, several in a chain.

    `wanted` says for which of them logits are wanted, and what of: SAMPLE or a target id.
    """

    request: Request
    num_tokens: int
    wanted: dict[int, int]


class Driver:
    """Dispatches plans to a runner, several requests at a time.

    Pages are dealt out in an order shuffled by `seed`, so that no test leans on neighbouring pages.
    """

    def __init__(self, runner: Runner, seed: int = 0) -> None:
        self.runner = runner
        self.limits: StepLimits = runner.limits
        order = np.random.default_rng(seed).permutation(np.arange(1, self.limits.num_pages))
        self._free_pages: list[int] = order.tolist()
        self._free_slots = list(range(self.limits.num_slots))
        self._num_steps = 0

    def request(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams = GREEDY,
        end_ids: tuple[int, ...] = (),
    ) -> Request:
        return Request(list(prompt), self._free_slots.pop(0), sampling, end_ids)

    def release(self, request: Request) -> None:
        self._free_pages += request.pages
        self._free_slots.append(request.slot)

    def prefill(self, request: Request, chunk: int | None = None, score: bool = False) -> Work:
        """The next `chunk` tokens of the prompt, drawing after the last; `score` asks for the
        log-probability of every prompt token but the first as well."""
        start, end = request.computed, len(request.prompt)
        stop = end if chunk is None else min(start + chunk, end)
        wanted: dict[int, int] = {}
        if score:
            wanted = {i - start: request.prompt[i + 1] for i in range(start, min(stop, end - 1))}
        if stop == end:
            wanted[stop - start - 1] = SAMPLE
        return Work(request, stop - start, wanted)

    def decode(self, request: Request, num_draws: int = 1) -> Work:
        return Work(request, num_draws, dict.fromkeys(range(num_draws), SAMPLE))

    def plan(self, works: Sequence[Work], top_logprobs: int | None = None) -> StepPlan:
        openings, edits, slots, q_len, kv_len = [], [], [], [], []
        token_ids: list[int] = []
        logit_idx: list[int] = []
        targets: list[int] = []
        logit_start = [0]
        for work in works:
            request = work.request
            if not request.opened:
                request.opened = True
                openings.append(self._opening(request))
            start, stop = request.computed, request.computed + work.num_tokens
            while len(request.pages) * self.limits.page_size < stop:
                page = self._free_pages.pop(0)
                edits.append((request.slot, len(request.pages), page))
                request.pages.append(page)
            tokens = request.prompt[start:stop] or [LAST_TOKEN] * work.num_tokens
            for index, target in sorted(work.wanted.items()):
                logit_idx.append(len(token_ids) + index)
                targets.append(target)
            logit_start.append(len(logit_idx))
            token_ids += tokens
            slots.append(request.slot)
            q_len.append(work.num_tokens)
            kv_len.append(stop)
            request.computed = stop
        decode = len(token_ids) == len(works) == len(logit_idx)
        chain = not decode and set(token_ids) == {LAST_TOKEN}
        self._num_steps += 1
        return StepPlan(
            step_id=self._num_steps,
            mode="decode" if decode else "chain" if chain else "mixed",
            slot=np.array(slots, np.int32),
            q_start=np.cumsum([0, *q_len], dtype=np.int32),
            token_ids=np.array(token_ids, np.int32),
            kv_len=np.array(kv_len, np.int32),
            write_from=np.zeros(len(works), np.int32),
            logit_idx=np.array(logit_idx, np.int32),
            logit_start=np.array(logit_start, np.int32),
            logit_target=np.array(targets, np.int32),
            page_edits=np.array(edits, np.int32).reshape(-1, 3),
            openings=tuple(openings),
            num_top_logprobs=top_logprobs,
        )

    def step(self, works: Sequence[Work], top_logprobs: int | None = None) -> StepResult:
        """Run one step to its end and note the tokens drawn."""
        plan = self.plan(works, top_logprobs)
        result = self.runner.dispatch(plan).wait()
        for row, work in enumerate(works):
            for k in range(plan.logit_start[row], plan.logit_start[row + 1]):
                if plan.logit_target[k] == SAMPLE:
                    work.request.drawn.append(int(result.token_ids[k]))
        return result

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        samplings: Sequence[SamplingParams] | SamplingParams = GREEDY,
        chunk: int | None = None,
        chain_len: int = 1,
    ) -> list[list[int]]:
        """Tokens drawn after each prompt, the requests decoding together, so many tokens a step.
        Releases everything."""
        if isinstance(samplings, SamplingParams):
            samplings = [samplings] * len(prompts)
        requests = [self.request(*pair) for pair in zip(prompts, samplings, strict=True)]
        for request in requests:
            while request.computed < len(request.prompt):
                self.step([self.prefill(request, chunk)])
        for drawn in range(1, num_tokens, chain_len):
            num_draws = min(chain_len, num_tokens - drawn)
            self.step([self.decode(request, num_draws) for request in requests])
        for request in requests:
            self.release(request)
        return [request.drawn for request in requests]

    def _opening(self, request: Request) -> SlotOpening:
        return SlotOpening(
            slot=request.slot,
            sampling=request.sampling,
            token_ids=np.array(request.prompt, np.int32),
            prompt_len=len(request.prompt) if request.prompt_len is None else request.prompt_len,
            end_token_ids=request.end_ids,
        )
