"""What steps with prompts in them cost, learned from how long they took. No clock here."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

MIN_CHUNK = 16
"""Tokens of prompts that every step has room for, whatever it costs: prompts must not starve."""
_KEEP = 0.97
"""Of what was learned, after each further step."""
_MAX_AGE = 1000
"""Steps after which the cost of a size is forgotten if no step had it: it may have been unlucky."""
_MAX_SURPRISE = 2.0
"""A step may seem to cost this many times what was expected: more is a hiccup of the machine."""
_PAIRS_UNIT = 1e7
_KEYS_UNIT = 1e5
_RIDGE = 1e-2
"""What cannot be told apart is laid to the size of the step, not to its attention."""
_SWEEPS = 3


@dataclass(frozen=True, slots=True)
class StepWork:
    num_tokens: int
    num_pairs: int
    """Keys that the tokens of chunks attend to, summed over those tokens."""
    num_keys: int
    """The same for rows of a single token."""


class StepCosts:
    """Seconds of a step: so much for its padded size, more for each pair of attention.

    A least-squares fit without negative costs, in which older steps count less. Attention of chunks
    (arithmetic) and of single tokens (reading) cost differently per key.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """`sizes`: to which steps are padded, ascending."""
        self._sizes = sizes
        self._age = [_MAX_AGE] * len(sizes)
        """Steps since the last one of each size."""
        num_costs = len(sizes) + 2
        self._gram = np.zeros((num_costs, num_costs))
        self._moment = np.zeros(num_costs)
        self._cost = np.zeros(num_costs)
        self._ridge = np.array([0.0] * len(sizes) + [_RIDGE] * 2)

    @property
    def pair_s(self) -> float:
        return float(self._cost[-2]) / _PAIRS_UNIT

    @property
    def key_s(self) -> float:
        return float(self._cost[-1]) / _KEYS_UNIT

    def size_s(self, index: int) -> float | None:
        """Of a step of the size of that index, without its attention; None if nothing is known.

        Between two sizes that were seen costs are taken to grow evenly, and below them not to fall.
        Beyond them only the next size is guessed at: what is cheap may not stay so.
        """
        seen = [i for i, age in enumerate(self._age) if age < _MAX_AGE]
        below = [i for i in seen if i <= index]
        above = [i for i in seen if i > index]
        if not below:
            return float(self._cost[above[0]]) if above else None
        last = below[-1]
        last_s = float(self._cost[last])
        if last == index:
            return last_s
        if above:
            return self._on_line(last, above[0], index)
        if index > last + 1:
            return None
        if len(below) == 1:
            return last_s * min(2.0, self._sizes[index] / self._sizes[last])
        return max(last_s, self._on_line(below[-2], last, index))

    def expect_s(self, work: StepWork) -> float | None:
        size_s = self.size_s(self._index(work))
        if size_s is None:
            return None
        return size_s + self.pair_s * work.num_pairs + self.key_s * work.num_keys

    def observe(self, work: StepWork, elapsed_s: float) -> None:
        """A step of that work has taken so long."""
        expected_s = self.expect_s(work)
        if expected_s is not None:
            elapsed_s = min(elapsed_s, _MAX_SURPRISE * expected_s)
        index = self._index(work)
        self._age = [age + 1 for age in self._age]
        self._age[index] = 0
        row = np.zeros(len(self._cost))
        row[index] = 1.0
        row[-2:] = work.num_pairs / _PAIRS_UNIT, work.num_keys / _KEYS_UNIT
        self._gram = _KEEP * self._gram + np.outer(row, row)
        self._moment = _KEEP * self._moment + elapsed_s * row
        self._fit()

    def _index(self, work: StepWork) -> int:
        return min(bisect_left(self._sizes, work.num_tokens), len(self._sizes) - 1)

    def _on_line(self, first: int, second: int, index: int) -> float:
        sizes, cost = self._sizes, self._cost
        slope = (cost[second] - cost[first]) / (sizes[second] - sizes[first])
        return float(cost[first] + slope * (sizes[index] - sizes[first]))

    def _fit(self) -> None:
        """Coordinate descent from the last fit: a few sweeps for each step that is seen."""
        gram, cost = self._gram, self._cost
        weights = gram.diagonal()
        known = np.flatnonzero(weights > 1e-6)  # of the others too little is remembered
        for _ in range(_SWEEPS):
            for i in known:
                rest = self._moment[i] - gram[i] @ cost + weights[i] * cost[i]
                cost[i] = max(0.0, rest / (weights[i] + self._ridge[i]))


def attending(num_pairs: float, context_len: int) -> int:
    """How many tokens behind that context attend to `num_pairs` keys between them, at most."""
    before = context_len + 0.5
    return math.floor(math.sqrt(before * before + 2 * max(0.0, num_pairs)) - before)
