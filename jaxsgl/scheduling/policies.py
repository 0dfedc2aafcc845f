"""In which order waiting requests are offered a place.

A policy sorts; it neither admits nor refuses. Those that look at the cache sort only the oldest
`window` requests, which bounds their cost; the rest follows in the order of arrival.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from jaxsgl.scheduling.request import Request

WINDOW = 128

type MatchLen = Callable[[Request], int]
"""Tokens of a request that the radix cache holds now."""


class Policy(Protocol):
    """Takes waiting requests, oldest first, and returns all of them in the order to admit them."""

    def __call__(
        self, waiting: list[Request], match_len: MatchLen, window: int = WINDOW
    ) -> list[Request]: ...


def first_come_first_served(
    waiting: list[Request], match_len: MatchLen, window: int = WINDOW
) -> list[Request]:
    return waiting


def longest_prefix_match(
    waiting: list[Request], match_len: MatchLen, window: int = WINDOW
) -> list[Request]:
    """Most cached tokens first, so that what is cached is used before it is evicted."""
    oldest = sorted(waiting[:window], key=match_len, reverse=True)
    return oldest + waiting[window:]


def depth_first_weight(
    waiting: list[Request], match_len: MatchLen, window: int = WINDOW
) -> list[Request]:
    """Depth first through the cached prefixes, branches that more requests wait for first.

    Requests under one branch run one after another, while that branch is in use and so not evicted.
    From "SGLang: Efficient Execution of Structured Language Model Programs" (arXiv 2312.07104),
    theorem 3.1: depth-first order has the best hit rate for a batch.
    """
    oldest = waiting[:window]
    prefixes = [r.tokens[: match_len(r)] for r in oldest]
    order = _depth_first(list(range(len(oldest))), prefixes, 0)
    return [oldest[i] for i in order] + waiting[window:]


def _depth_first(members: list[int], prefixes: Sequence[Sequence[int]], depth: int) -> list[int]:
    """Sort `members`, whose prefixes agree up to `depth`."""
    while True:
        ending = [i for i in members if len(prefixes[i]) == depth]
        branches: dict[int, list[int]] = {}
        for i in members:
            if len(prefixes[i]) > depth:
                branches.setdefault(prefixes[i][depth], []).append(i)
        if ending or len(branches) != 1:
            break
        depth += 1
    # Deepest first: a request that ends here needs less of the cache than those below.
    heaviest_first = sorted(branches.values(), key=len, reverse=True)
    below = [i for branch in heaviest_first for i in _depth_first(branch, prefixes, depth + 1)]
    return below + ending


def longest_output_first(
    waiting: list[Request], match_len: MatchLen, window: int = WINDOW
) -> list[Request]:
    return sorted(waiting, key=lambda r: r.want_limit - r.known, reverse=True)


def highest_priority_first(
    waiting: list[Request], match_len: MatchLen, window: int = WINDOW
) -> list[Request]:
    return sorted(waiting, key=lambda r: r.priority, reverse=True)


def random_order(seed: int) -> Policy:
    generator = random.Random(seed)

    def shuffled(
        waiting: list[Request], match_len: MatchLen, window: int = WINDOW
    ) -> list[Request]:
        return generator.sample(waiting, len(waiting))

    return shuffled


POLICY_NAMES = ("fcfs", "lpm", "dfs-weight", "lof", "random", "priority")


def make_policy(name: str, seed: int = 0) -> Policy:
    """The policy called `name`; `seed` matters to "random" alone. Raises ValueError."""
    match name:
        case "fcfs":
            return first_come_first_served
        case "lpm":
            return longest_prefix_match
        case "dfs-weight":
            return depth_first_weight
        case "lof":
            return longest_output_first
        case "random":
            return random_order(seed)
        case "priority":
            return highest_priority_first
        case _:
            known = ", ".join(POLICY_NAMES)
            raise ValueError(f"schedule policy {name!r} is unknown; known: {known}")
