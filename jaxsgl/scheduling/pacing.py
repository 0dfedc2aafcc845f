"""How much of the waiting prompts goes into a step beside rows that decode."""

from __future__ import annotations

import math

from jaxsgl.scheduling.plan_builder import PlanBuilder
from jaxsgl.scheduling.step_costs import MIN_CHUNK, StepCosts, StepWork, attending
from jaxsgl.step import StepLimits

SAFETY = 0.85
"""Of the promised time is planned for: clients see more than the steps take. Where 0.9 of 80 ms
was, they saw a 99th percentile of 77 to 85 ms on an H100, and at most 83 ms beside a prompt of 32k
tokens."""


class Pace:
    """Keeps steps with decoding rows below a promised time, by the chunks of prompts in them.

    A row gets a token from every step, so that the time of a step is the time between its tokens.
    Of the padded sizes that are expected to keep the promise, the one that takes the most prompt is
    chosen. Where decoding alone takes too long the least possible chunk is added.
    """

    def __init__(self, promise_s: float, limits: StepLimits) -> None:
        self._target_s = SAFETY * promise_s
        self._sizes = limits.mixed_sizes or (limits.max_tokens,)
        self._costs = StepCosts(self._sizes)

    def observe(self, work: StepWork, elapsed_s: float) -> None:
        """A step that had a prompt in it has run."""
        self._costs.observe(work, elapsed_s)

    def bound(self, builder: PlanBuilder, context_len: int) -> None:
        """Leave the room in `builder`, which has its single tokens, that the promise allows.
        `context_len` is what the first chunk to come has before it."""
        work = builder.work
        costs = self._costs
        best_len, best_pairs = 0, 0.0
        for index, size in enumerate(self._sizes):
            size_s = costs.size_s(index)
            room = size - work.num_tokens
            if room <= 0:
                continue
            if size_s is None:
                break
            left_s = self._target_s - size_s - costs.key_s * work.num_keys
            if left_s <= 0.0:
                continue
            num_pairs, chunk_len = math.inf, room
            if costs.pair_s > 0.0:
                num_pairs = left_s / costs.pair_s
                chunk_len = min(room, attending(num_pairs, context_len))
            if chunk_len > best_len:
                best_len, best_pairs = chunk_len, num_pairs
        if best_len < MIN_CHUNK:
            best_len, best_pairs = self._least_room(work.num_tokens), math.inf
        builder.bound(best_len, best_pairs)

    def _least_room(self, num_tokens: int) -> int:
        """Of the smallest size in which there is room for a chunk at all."""
        rooms = (size - num_tokens for size in self._sizes)
        return next((room for room in rooms if room >= MIN_CHUNK), MIN_CHUNK)
