"""Every counter, gauge and histogram of a server, declared once.

Two sources feed them. What only the front sees (how requests end, when their tokens arrive) is
observed as it happens; what the engine counts is read from its latest report at each scrape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from jaxsgl.config import ConfigError
from jaxsgl.interface import (
    TIME_BOUNDS_S,
    EngineError,
    EngineStats,
    Finish,
    ReplicaLatency,
    ReplicaReport,
    TimeHistogram,
    Usage,
)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Media type of `Metrics.exposition`."""

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_INTER_TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_E2E_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LOOP_LAG_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


SGLANG = "sglang"
"""The prefix with which names and labels are those that SGLang's dashboards know."""


class Metrics:
    """The instruments of one server, in a registry of their own."""

    def __init__(self, prefix: str = "jaxsgl", model_name: str = "") -> None:
        """`prefix` goes before every name. With SGLANG, every sample carries the label
        `model_name`. Raises ConfigError for a prefix that no name may have."""
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", prefix):
            raise ConfigError(f"--metrics-prefix {prefix!a} is not made of letters, digits and _")
        self._labels = {"model_name": model_name} if prefix == SGLANG else {}
        prefix = self._prefix = prefix + (":" if prefix == SGLANG else "_")
        self._registry = CollectorRegistry()
        self._requests = Counter(
            f"{prefix}num_requests",
            "Requests by how they ended: a finish reason, refused, error, or disconnected",
            ["finish"],
            registry=self._registry,
        )
        self._errors = Counter(
            f"{prefix}errors",
            "Error answers by type and code, and streams that ended with one",
            ["type", "code"],
            registry=self._registry,
        )
        self._replica_restarts = Counter(
            f"{prefix}replica_restarts",
            "Times a replica was started again after one had died",
            registry=self._registry,
        )
        self._key_requests = self._by_key("requests", "Answers to the holder of an API key")
        self._key_prompt_tokens = self._by_key("prompt_tokens", "Prompt tokens of those answers")
        self._key_tokens = self._by_key("generation_tokens", "Tokens generated in them")
        self._key_wait = Summary(
            f"{prefix}key_time_to_first_token_seconds",
            "From admission to the first token, by API key",
            ["key"],
            registry=self._registry,
        )
        self._time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From admission to the first token", _TTFT_BUCKETS_S
        )
        self._inter_token_latency = self._histogram(
            "inter_token_latency_seconds",
            "Between two deliveries of one request, per token delivered",
            _INTER_TOKEN_BUCKETS_S,
        )
        self._e2e_latency = self._histogram(
            "e2e_request_latency_seconds",
            "From admission to the last token of requests that ran to their end",
            _E2E_BUCKETS_S,
        )
        self._loop_lag = self._histogram(
            "event_loop_lag_seconds",
            "How late the front's event loop ran a timer",
            _LOOP_LAG_BUCKETS_S,
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(self._prefix + name, text, buckets=buckets, registry=self._registry)

    def _by_key(self, name: str, text: str) -> Counter:
        return Counter(f"{self._prefix}key_{name}", text, ["key"], registry=self._registry)

    def watch_engine(self, read_stats: Callable[[], EngineStats]) -> None:
        """Expose what `read_stats` returns at each scrape. Call once."""
        self._registry.register(_EngineCollector(self._prefix, read_stats))

    def watch_replicas(self, read: Callable[[], list[ReplicaReport]]) -> None:
        """Expose each replica of what `read` returns at each scrape. Call once."""
        self._registry.register(_ReplicaCollector(self._prefix, read))

    def first_token(self, elapsed_s: float, key: str = "") -> None:
        """Of a request of the API key of this label; "" for none."""
        self._time_to_first_token.observe(elapsed_s)
        if key:
            self._key_wait.labels(key).observe(elapsed_s)

    def later_tokens(self, gap_s: float, num_tokens: int) -> None:
        """`num_tokens` arrived together, `gap_s` after the delivery before."""
        self._inter_token_latency.observe(gap_s / num_tokens)

    def request_finished(self, finish: Finish, elapsed_s: float) -> None:
        self._requests.labels(finish.kind).inc()
        self._e2e_latency.observe(elapsed_s)

    def key_served(self, key: str, usage: Usage) -> None:
        """The API key of this label has got an answer. Nothing happens for ""."""
        if key:
            self._key_requests.labels(key).inc()
            self._key_prompt_tokens.labels(key).inc(usage.prompt_tokens)
            self._key_tokens.labels(key).inc(usage.completion_tokens)

    def request_refused(self) -> None:
        """The client asked for something that it cannot have, or cannot have now."""
        self._requests.labels("refused").inc()

    def request_failed(self) -> None:
        self._requests.labels("error").inc()

    def error(self, error: EngineError) -> None:
        """A client was told of it."""
        self._errors.labels(error.kind, error.code or "none").inc()

    def request_disconnected(self) -> None:
        """The client went away before the answer was complete."""
        self._requests.labels("disconnected").inc()

    def replica_restarted(self) -> None:
        self._replica_restarts.inc()

    def event_loop_lag(self, lag_s: float) -> None:
        self._loop_lag.observe(lag_s)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(_Labelled(self._registry, self._labels))


_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("num_running_reqs", "Requests in the batch", lambda s: s.num_running),
    ("num_queue_reqs", "Requests waiting for a place in the batch", lambda s: s.num_waiting),
    ("slots_total", "Places in the batch", lambda s: s.slots_total),
    ("slots_free", "Free places in the batch", lambda s: s.slots_free),
    ("radix_locks", "Locks that requests hold on cached prefixes", lambda s: s.locks),
    ("radix_holds", "Cached prefixes that are kept on request", lambda s: s.holds),
    ("pages_total", "KV pages", lambda s: s.pages_total),
    ("pages_free", "KV pages that nothing holds", lambda s: s.pages_free),
    ("pages_cached", "KV pages that only the radix cache holds", lambda s: s.pages_cached),
    ("pages_held_peak", "Most KV pages that requests held at once", lambda s: s.pages_held_peak),
    (
        "token_usage",
        "Share of the KV pages that requests hold",
        lambda s: 1 - (s.pages_free + s.pages_cached) / s.pages_total if s.pages_total else 0.0,
    ),
    ("num_used_tokens", "Room for tokens in the pages that requests hold", lambda s: s.tokens_held),
    (
        "gen_throughput",
        "Tokens generated per second, over the last ten",
        lambda s: s.generated_per_s,
    ),
    (
        "cache_hit_rate",
        "Share of all prompt tokens so far that was in the radix cache",
        lambda s: s.cached_tokens / s.prompt_tokens if s.prompt_tokens else 0.0,
    ),
)

_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("steps", "Device steps", lambda s: s.steps),
    ("prompt_tokens", "Prompt tokens of admitted requests", lambda s: s.prompt_tokens),
    ("cached_tokens", "Prompt tokens whose KV was in the radix cache", lambda s: s.cached_tokens),
    (
        "recomputed_tokens",
        "Tokens computed again after a retraction or a failed step",
        lambda s: s.recomputed_tokens,
    ),
    ("generation_tokens", "Tokens generated", lambda s: s.generated_tokens),
    ("num_finished_requests", "Requests that ended by themselves", lambda s: s.requests_finished),
    ("num_aborted_requests", "Requests that were aborted", lambda s: s.requests_aborted),
    (
        "num_retracted_requests",
        "Times a request gave its place back and waited again",
        lambda s: s.requests_retracted,
    ),
    (
        "num_given_up_holds",
        "Kept prefixes that were given up before their time, for want of pages",
        lambda s: s.holds_given_up,
    ),
    ("cache_rebuilds", "Times the KV cache was thrown away", lambda s: s.cache_rebuilds),
    ("recompiles", "Programs compiled after the engine was ready", lambda s: s.recompiles),
)


_HISTOGRAMS: tuple[tuple[str, str, Callable[[EngineStats], TimeHistogram]], ...] = (
    (
        "queue_time_seconds",
        "From a request's arrival to its first place in a step",
        lambda s: s.queue_time,
    ),
    ("step_time_seconds", "Of a step on the device", lambda s: s.step_time),
    (
        "mask_time_seconds",
        "What a step waited for token masks and spent on laying them out",
        lambda s: s.mask_time,
    ),
)


class _EngineCollector(Collector):
    """Turns one EngineStats into metric families at each scrape."""

    def __init__(self, prefix: str, read_stats: Callable[[], EngineStats]) -> None:
        self._prefix = prefix
        self._read_stats = read_stats

    def describe(self) -> Iterator[Metric]:
        """The families without reading the engine, which may not have started yet."""
        return self._families(EngineStats())

    def collect(self) -> Iterator[Metric]:
        return self._families(self._read_stats())

    def _families(self, stats: EngineStats) -> Iterator[Metric]:
        for name, text, value in _GAUGES:
            yield GaugeMetricFamily(self._prefix + name, text, value=value(stats))
        for name, text, value in _COUNTERS:
            yield CounterMetricFamily(self._prefix + name, text, value=value(stats))
        for name, text, histogram in _HISTOGRAMS:
            yield _histogram_family(self._prefix + name, text, histogram(stats))


def _histogram_family(name: str, text: str, histogram: TimeHistogram) -> HistogramMetricFamily:
    ends = [*map(floatToGoString, TIME_BOUNDS_S), "+Inf"]
    buckets = list(zip(ends, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.sum_s)


class _Labelled(Collector):
    """What another collector has, with more labels on every sample."""

    def __init__(self, inner: Collector, labels: dict[str, str]) -> None:
        self._inner = inner
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for family in self._inner.collect():
            labelled = Metric(family.name, family.documentation, family.type, family.unit)
            labelled.samples = [
                Sample(s.name, {**self._labels, **s.labels}, s.value, s.timestamp, s.exemplar)
                for s in family.samples
            ]
            yield labelled


_REPLICA_GAUGES: tuple[tuple[str, str, Callable[[ReplicaReport], float]], ...] = (
    ("replica_up", "Whether the replica takes requests", lambda r: r.state == "ready"),
    ("replica_devices", "Devices of the replica", lambda r: len(r.devices)),
    ("replica_in_flight_reqs", "Requests sent to it and not ended", lambda r: r.num_in_flight),
    ("replica_running_reqs", "Requests in its batch", lambda r: r.stats.num_running),
    ("replica_queue_reqs", "Requests that wait in it", lambda r: r.stats.num_waiting),
    ("replica_backlog_tokens", "Uncached tokens not answered yet", lambda r: r.backlog_tokens),
    ("replica_capacity_pages", "Its KV pages", lambda r: r.stats.pages_total),
    ("replica_free_pages", "Its KV pages that nothing holds", lambda r: r.stats.pages_free),
    ("replica_cached_pages", "Its KV pages of the cache alone", lambda r: r.stats.pages_cached),
)

_REPLICA_LATENCIES: tuple[tuple[str, str, Callable[[ReplicaLatency], float | None]], ...] = (
    (
        "replica_excess_ttft_seconds",
        "To the first token beyond the computing of the prompt, lately",
        lambda latency: latency.excess_ttft_s,
    ),
    (
        "replica_inter_token_seconds",
        "Per token after the first, lately",
        lambda latency: latency.inter_token_s,
    ),
)

_REPLICA_COUNTERS: tuple[tuple[str, str, Callable[[ReplicaReport], float]], ...] = (
    ("replica_starts", "Times it was started", lambda r: r.epoch + 1),
    ("replica_prompt_tokens", "Prompt tokens since its start", lambda r: r.stats.prompt_tokens),
    ("replica_cached_tokens", "Those of them from the cache", lambda r: r.stats.cached_tokens),
    ("replica_generation_tokens", "Tokens generated", lambda r: r.stats.generated_tokens),
)


class _ReplicaCollector(Collector):
    """The same for each replica, labelled with its number."""

    def __init__(self, prefix: str, read: Callable[[], list[ReplicaReport]]) -> None:
        self._prefix = prefix
        self._read = read

    def describe(self) -> Iterator[Metric]:
        return self._families([])

    def collect(self) -> Iterator[Metric]:
        return self._families(self._read())

    def _families(self, reports: list[ReplicaReport]) -> Iterator[Metric]:
        kinds = ((GaugeMetricFamily, _REPLICA_GAUGES), (CounterMetricFamily, _REPLICA_COUNTERS))
        for kind, entries in kinds:
            for name, text, value in entries:
                family = kind(self._prefix + name, text, labels=["replica"])
                for report in reports:
                    family.add_metric([str(report.replica_id)], value(report))
                yield family
        followed = [(str(r.replica_id), r.latency) for r in reports if r.latency is not None]
        for name, text, read in _REPLICA_LATENCIES if followed else ():
            family = GaugeMetricFamily(self._prefix + name, text, labels=["replica"])
            for replica, latency in followed:
                seconds = read(latency)
                if seconds is not None:
                    family.add_metric([replica], seconds)
            yield family
