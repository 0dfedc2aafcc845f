"""Moving averages of the latencies that clients of one replica saw."""

from __future__ import annotations

from jaxsgl.interface import ReplicaLatency

HALF_LIFE_S = 10.0
"""After so long a value counts half. One that is not renewed fades towards the mean of all."""


class FadingMean:
    """A mean in which the past counts less and less. Times are on the caller's clock."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._sum = 0.0
        self._weight = 0.0
        self._at_s = 0.0

    def add(self, value: float, now_s: float) -> None:
        self._fade(now_s)
        self._sum += value
        self._weight += 1.0

    def value(self, now_s: float, otherwise: float) -> float:
        """`otherwise` counts as one value more: the less was seen lately, the more it weighs."""
        self._fade(now_s)
        return (self._sum + otherwise) / (self._weight + 1.0)

    @property
    def mean(self) -> float | None:
        """None before the first value."""
        return self._sum / self._weight if self._weight > 0.0 else None

    def _fade(self, now_s: float) -> None:
        share = 0.5 ** (max(0.0, now_s - self._at_s) / self._half_life_s)
        self._sum *= share
        self._weight *= share
        self._at_s = max(self._at_s, now_s)


class LatencyMeter:
    """What the answers of one replica took."""

    def __init__(self) -> None:
        self.excess_ttft = FadingMean()
        """Seconds to the first token beyond what computing the uncached prompt takes."""
        self.inter_token = FadingMean()
        """Seconds per token after the first."""
        self.answer_s = 0.0
        """Seconds from the first to the last token, of answers lately; 0 before the first."""

    def first_token(self, ttft_s: float, expected_s: float, now_s: float) -> None:
        self.excess_ttft.add(max(0.0, ttft_s - expected_s), now_s)

    def later_tokens(self, gap_s: float, num_tokens: int, now_s: float) -> None:
        self.inter_token.add(gap_s / num_tokens, now_s)

    def report(self) -> ReplicaLatency:
        return ReplicaLatency(
            excess_ttft_s=self.excess_ttft.mean, inter_token_s=self.inter_token.mean
        )

    def answered(self, elapsed_s: float) -> None:
        if self.answer_s == 0.0:
            self.answer_s = elapsed_s
        else:
            self.answer_s += 0.1 * (elapsed_s - self.answer_s)
