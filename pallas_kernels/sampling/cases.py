"""Named rows of logits and ways to draw from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    name: str
    vocab: int
    sharpness: float
    """Standard deviation of the logits."""
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    levels: int | None = None
    """Logits take this many different values only, so that many are equal."""
    num_impossible: int = 0
    """Logits of -inf."""

    @property
    def options(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }


CASES = (
    Case("greedy", 300, 2.0, temperature=0.0),
    Case("everything", 300, 1.0),
    Case("cold", 300, 2.0, temperature=0.3),
    Case("hot", 300, 2.0, temperature=2.0),
    Case("top-k", 300, 1.0, top_k=20),
    Case("top-k of 1", 300, 1.0, top_k=1),
    Case("top-k of all", 300, 1.0, top_k=300),
    Case("top-k of more than there are", 300, 1.0, top_k=2**31 - 1),
    Case("top-p", 300, 1.5, top_p=0.7),
    Case("top-p of next to nothing", 300, 1.5, top_p=1e-6),
    Case("top-p of nearly all", 300, 1.5, top_p=0.999),
    Case("min-p", 300, 2.0, min_p=0.1),
    Case("min-p of 1", 300, 2.0, min_p=1.0),
    Case("all filters", 300, 1.5, temperature=0.8, top_k=40, top_p=0.9, min_p=0.02),
    Case("equal logits, top-k", 300, 1.0, top_k=7, levels=9),
    Case("equal logits, top-p", 300, 1.0, top_p=0.5, levels=9),
    Case("all logits equal", 300, 0.0, top_p=0.3),
    Case("impossible tokens", 300, 1.0, top_p=0.9, num_impossible=250),
    Case("one possible token", 300, 1.0, top_k=5, num_impossible=299),
    Case("vocabulary of three", 3, 1.0, top_p=0.8),
    Case("one block of vocabulary", 128, 1.0, top_k=30),
    Case("large vocabulary, flat", 20000, 0.5, top_p=0.8, top_k=700),
    Case("large vocabulary, peaked", 20000, 4.0, top_p=0.95),
)


def make_logits(case: Case, seed: int = 0) -> NDArray[np.float32]:
    """One row [vocab]."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(case.vocab, np.float32) * np.float32(case.sharpness)
    if case.levels is not None:
        logits = np.round(logits * case.levels / 6) * np.float32(6 / case.levels)
    logits[rng.permutation(case.vocab)[: case.num_impossible]] = -np.inf
    return logits
