"""How long a replica's steps take. Pure: the caller reads the clock."""

from __future__ import annotations

from collections import deque

from jaxsgl.actors.messages import Speed
from jaxsgl.step import StepPlan

_WEIGHT = 0.1
"""Of the latest decode step in their average."""
_HALF_LIFE_TOKENS = 32_768
"""After so many tokens of prompts, what was measured before counts half. By tokens, not by steps: a
short prompt takes as long as reading the weights does, and says little about long ones."""
_PREFILL_TOKENS_PER_ROW = 4
"""A mixed step of so many tokens per row computes prompts; others decode."""


class SpeedMeter:
    """Moving averages over steps that end in the order of their beginning.

    A step that waits behind another on the device counts from the end of that one.
    """

    def __init__(self, chain_len: int) -> None:
        """Chains are so many decode steps each, see `StepLimits`."""
        self._chain_len = chain_len
        self.speed = Speed()
        self._begun: deque[tuple[StepPlan, float]] = deque()
        self._last_end_s = 0.0
        self._prefill_s = 0.0
        self._prefill_tokens = 0.0

    def step_begun(self, plan: StepPlan, now_s: float) -> None:
        self._begun.append((plan, now_s))

    def step_ended(self, now_s: float) -> float:
        """How long the step took, in seconds."""
        plan, begin_s = self._begun.popleft()
        num_tokens = plan.num_tokens
        elapsed_s = now_s - max(begin_s, self._last_end_s)
        self._last_end_s = now_s
        prefill_token_s, decode_s = self.speed.prefill_token_s, self.speed.decode_step_s
        if plan.mode == "mixed" and num_tokens >= _PREFILL_TOKENS_PER_ROW * plan.num_rows:
            kept = 0.5 ** (num_tokens / _HALF_LIFE_TOKENS)
            self._prefill_s = kept * self._prefill_s + elapsed_s
            self._prefill_tokens = kept * self._prefill_tokens + num_tokens
            prefill_token_s = self._prefill_s / self._prefill_tokens
        else:
            each_s = elapsed_s / (self._chain_len if plan.mode == "chain" else 1)
            decode_s = each_s if decode_s == 0.0 else decode_s + _WEIGHT * (each_s - decode_s)
        self.speed = Speed(prefill_token_s, decode_s)
        return elapsed_s

    def forget_steps(self) -> None:
        """Those begun will not end."""
        self._begun.clear()
