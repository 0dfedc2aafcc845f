"""How long a replica's steps take. Pure: the caller reads the clock."""

from __future__ import annotations

from collections import deque

from jaxsgl.actors.messages import Speed

_WEIGHT = 0.1
"""Of the latest step in the averages."""
_PREFILL_TOKENS_PER_ROW = 4
"""A step of so many tokens per row computes prompts; one of fewer decodes."""


class SpeedMeter:
    """Moving averages over steps that end in the order of their beginning.

    A step that waits behind another on the device counts from the end of that one.
    """

    def __init__(self) -> None:
        self.speed = Speed()
        self._begun: deque[tuple[int, int, float]] = deque()
        self._last_end_s = 0.0

    def step_begun(self, num_rows: int, num_tokens: int, now_s: float) -> None:
        self._begun.append((num_rows, num_tokens, now_s))

    def step_ended(self, now_s: float) -> float:
        """How long the step took, in seconds."""
        num_rows, num_tokens, begin_s = self._begun.popleft()
        elapsed_s = now_s - max(begin_s, self._last_end_s)
        self._last_end_s = now_s
        prefill_s, decode_s = self.speed.prefill_token_s, self.speed.decode_step_s
        if num_tokens >= _PREFILL_TOKENS_PER_ROW * num_rows:
            prefill_s = _mean(prefill_s, elapsed_s / num_tokens)
        else:
            decode_s = _mean(decode_s, elapsed_s)
        self.speed = Speed(prefill_s, decode_s)
        return elapsed_s

    def forget_steps(self) -> None:
        """Those begun will not end."""
        self._begun.clear()


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _WEIGHT * (value - mean)
