"""What a front has sent to one replica and not got back, and what it knows of the replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from jaxsgl.actors.messages import Speed
from jaxsgl.interface import EngineStats
from jaxsgl.replicas.routing.latency import LatencyMeter
from jaxsgl.replicas.routing.prefix_sketch import PrefixSketch

FIRST_GUESS = Speed(prefill_token_s=1e-4, decode_step_s=0.02)
"""Until a replica has been seen at work."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request as a router sees it."""

    num_tokens: int
    """To have KV before the first token is drawn."""
    page_size: int = 0
    """0: nothing is cached."""
    names: Sequence[bytes] = ()
    """Of its prefixes of whole pages (`cache.page_hash`), shortest first."""


@dataclass(slots=True)
class ReplicaLoad:
    """One life of a replica. `stats` and `speed` are what it reported last; the rest is counted
    here, through guards."""

    replica_id: int
    weight: float = 1.0
    stats: EngineStats = field(default_factory=EngineStats)
    speed: Speed = field(default_factory=Speed)
    sketch: PrefixSketch = field(default_factory=PrefixSketch)
    latency: LatencyMeter = field(default_factory=LatencyMeter)
    num_in_flight: int = 0
    """Requests sent and not ended."""
    backlog_tokens: int = 0
    """Uncached tokens of those of them that have no answer yet."""
    reserved_pages: int = 0
    """Pages that those will need."""
    answering: dict[Guard, float] = field(default_factory=dict)
    """When each of the others had its first token, earliest first."""

    @property
    def num_slots(self) -> int:
        return max(1, self.stats.slots_total)

    @property
    def prefill_token_s(self) -> float:
        return self.speed.prefill_token_s or FIRST_GUESS.prefill_token_s

    @property
    def decode_step_s(self) -> float:
        return self.speed.decode_step_s or FIRST_GUESS.decode_step_s

    @property
    def answer_s(self) -> float:
        """Seconds that an answer is expected to take from its first token on."""
        return self.latency.answer_s or 64 * self.decode_step_s

    @property
    def page_share(self) -> float:
        """Of its KV pages, those that requests hold or that were promised to requests under way."""
        stats = self.stats
        held = stats.pages_total - stats.pages_free - stats.pages_cached + self.reserved_pages
        return held / max(1, stats.pages_total)

    def uncached_len(self, job: Job) -> int:
        """Tokens that the replica would have to compute before the first one is drawn."""
        num_cached = self.sketch.num_cached(job.names) * job.page_size
        return max(1, job.num_tokens - num_cached)

    def row_wait_s(self, now_s: float) -> float:
        """Seconds until a request which came now would have a row: those before it that have none
        get the rows of the answers that end first."""
        num_ahead = self.num_in_flight - self.num_slots
        if num_ahead < 0:
            return 0.0
        rounds, num_ahead = divmod(num_ahead, self.num_slots)
        begun_s = next(islice(self.answering.values(), num_ahead, None), now_s)
        return max(0.0, begun_s + self.answer_s - now_s) + rounds * self.answer_s

    def queue_delay_s(self, prefill_token_s: float, now_s: float) -> float:
        """Seconds that a request which came now would lose to those that are there, where a token
        of a prompt takes so long.

        Prompts before it are computed before it. Answers under way take part of every step; where
        they have every row, one of them has to end first.
        """
        busy_s = self.num_in_flight / self.num_slots * self.answer_s
        return self.backlog_tokens * prefill_token_s + busy_s + self.row_wait_s(now_s)


class Guard:
    """A request's share in the load of a replica, from its sending to its end there."""

    def __init__(self, load: ReplicaLoad, job: Job) -> None:
        self._load = load
        self._names = job.names
        self._uncached_len = load.uncached_len(job)
        self._num_pages = -(-self._uncached_len // job.page_size) if job.page_size else 0
        self._waits = True
        self._is_held = True
        load.num_in_flight += 1
        load.backlog_tokens += self._uncached_len
        load.reserved_pages += self._num_pages
        load.sketch.expect(self._names)

    @property
    def uncached_len(self) -> int:
        return self._uncached_len

    def prefilled(self, now_s: float) -> None:
        """Its prompt has been computed. Idempotent."""
        if self._waits:
            self._wait_no_more()
            self._load.answering[self] = now_s

    def release(self) -> None:
        """It has ended, or has gone elsewhere. Idempotent."""
        if self._is_held:
            self._is_held = False
            if self._waits:
                self._wait_no_more()
            self._load.answering.pop(self, None)
            self._load.num_in_flight -= 1

    def _wait_no_more(self) -> None:
        self._waits = False
        self._load.backlog_tokens -= self._uncached_len
        self._load.reserved_pages -= self._num_pages
        self._load.sketch.expect_no_more(self._names)
