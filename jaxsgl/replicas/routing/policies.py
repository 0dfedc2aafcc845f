"""The load balancing policies. Each chooses one of the replicas that could serve a request now."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from jaxsgl.config import ConfigError
from jaxsgl.replicas.routing.latency import FadingMean
from jaxsgl.replicas.routing.load import Job, ReplicaLoad

type Loads = Sequence[ReplicaLoad]
"""Replicas that could serve a request now, at least one, by rising id."""

RESIDENT_TOKENS = 32
"""Tokens of an answer that an inter-token latency is weighed with against a time to first token."""


_CLEARLY = 0.95
"""Of two latencies, the smaller one's share of the larger from which on they count as different."""

_WORK_WEIGHT = 2.0
"""Computing a prompt counts once for the request itself and once for those that come after it."""


class Policy(Protocol):
    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        """`now_s` is on a clock that never goes back."""
        ...


class RoundRobin:
    def __init__(self) -> None:
        self._last_id = -1

    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        later = [load for load in loads if load.replica_id > self._last_id]
        chosen = (later or loads)[0]
        self._last_id = chosen.replica_id
        return chosen


class Random:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        return self._rng.choice(loads)


class PowerOfTwo:
    """The less busy of two that are drawn at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        pair = self._rng.sample(loads, min(2, len(loads)))
        return min(pair, key=lambda load: load.num_in_flight / load.num_slots)


class Weighted:
    """Shares in proportion to the weights, spread as evenly as they can be (the smooth weighted
    round robin of nginx)."""

    def __init__(self) -> None:
        self._credit: dict[int, float] = {}

    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        for load in loads:
            self._credit[load.replica_id] = self._credit.get(load.replica_id, 0.0) + load.weight
        chosen = max(loads, key=lambda load: self._credit[load.replica_id])
        self._credit[chosen.replica_id] -= sum(load.weight for load in loads)
        return chosen


class _Rotation:
    """Breaks ties in turn."""

    def __init__(self) -> None:
        self._turns = itertools.count()

    def best(self, loads: Loads, key: Callable[[ReplicaLoad], tuple[float, ...]]) -> ReplicaLoad:
        keys = [key(load) for load in loads]
        best = min(keys)
        equals = [load for load, its in zip(loads, keys, strict=True) if its == best]
        return equals[next(self._turns) % len(equals)]


class MinLoad:
    """The lowest share of KV pages in use: arrays on the devices have their full size from the
    start, so pages are what memory in use means here."""

    def __init__(self) -> None:
        self._rotation = _Rotation()

    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        return self._rotation.best(loads, lambda load: (load.page_share, load.num_in_flight))


class MinLatency:
    """The faster of two that are drawn at random: what clients saw lately, and the wait for a row.

    Of two, because all requests going to whichever was fastest last would make it the slowest.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        mean_ttft = _mean(load.latency.excess_ttft for load in loads)
        mean_inter_token = _mean(load.latency.inter_token for load in loads)

        def expected_s(load: ReplicaLoad) -> float:
            ttft = load.latency.excess_ttft.value(now_s, mean_ttft)
            inter_token = load.latency.inter_token.value(now_s, mean_inter_token)
            alone = ttft + RESIDENT_TOKENS * inter_token
            prompt = load.uncached_len(job) * load.prefill_token_s
            shared = alone * (1 + load.num_in_flight / load.num_slots)
            return prompt + shared + load.row_wait_s(now_s)

        one, *other = self._rng.sample(loads, min(2, len(loads)))
        # About equal is equal: or one that was slow once would never be seen to have recovered.
        if other and expected_s(other[0]) < _CLEARLY * expected_s(one):
            return other[0]
        return one


class CacheAware:
    """The earliest first token: what is not cached of the prompt has to be computed, behind what is
    there already.

    One formula for affinity and balance: a prompt goes where its prefix is as long as that saves
    more than the queue there costs. All replicas are taken to compute prompts as fast as the
    fastest does: they run the same programs, and one whose first steps were slow would get no more
    to show that it is not. One that is slow keeps its backlog, which counts.
    """

    def __init__(self) -> None:
        self._rotation = _Rotation()

    def choose(self, job: Job, loads: Loads, now_s: float) -> ReplicaLoad:
        prefill_token_s = min(load.prefill_token_s for load in loads)

        def cost(load: ReplicaLoad) -> tuple[float, ...]:
            compute_s = load.uncached_len(job) * prefill_token_s
            cost_s = _WORK_WEIGHT * compute_s + load.queue_delay_s(prefill_token_s, now_s)
            return cost_s, load.num_in_flight, len(load.sketch)

        return self._rotation.best(loads, cost)


def make_policy(name: str, seed: int) -> Policy:
    """Raises ConfigError for a name that is none of `config.BALANCING_POLICIES`."""
    rng = random.Random(seed)
    makers: dict[str, Callable[[], Policy]] = {
        "cache-aware": CacheAware,
        "round-robin": RoundRobin,
        "min-load": MinLoad,
        "min-latency": lambda: MinLatency(rng),
        "weighted": Weighted,
        "power-of-two": lambda: PowerOfTwo(rng),
        "random": lambda: Random(rng),
    }
    if name not in makers:
        raise ConfigError(f"--load-balancing-policy {name} is none of {', '.join(makers)}")
    return makers[name]()


def _mean(means: Iterable[FadingMean]) -> float:
    """Of the replicas that have been seen; 0 if none has."""
    known = [each.mean for each in means if each.mean is not None]
    return sum(known) / len(known) if known else 0.0
