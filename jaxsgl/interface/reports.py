"""How an engine and its replicas are doing."""

from __future__ import annotations

import msgspec


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """What `/v1/models` calls it."""
    architecture: str
    vocab_size: int
    context_len: int
    eos_token_ids: tuple[int, ...]
    embedding_len: int = 0
    """Numbers in an embedding: the model's hidden size."""
    has_chat_template: bool
    num_devices: int
    mesh: str
    """As on the command line, for example "tp=1"."""
    platform: str
    """jax's name of the device kind: cpu, gpu or tpu."""
    attention_backend: str
    """The kernels in use: triton or xla."""
    tool_format: str = "hermes"
    """The form in which the chat template has the model write tool calls."""
    weight_version: str = "default"
    """What the weights in use are called; changed by UpdateWeights."""


TIME_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of the buckets of a TimeHistogram; the last bucket has none."""


class TimeHistogram(msgspec.Struct, frozen=True, array_like=True):
    """How often something took how long. Histograms add up, also with 0."""

    counts: tuple[int, ...] = (0,) * (len(TIME_BOUNDS_S) + 1)
    """Of each bucket alone."""
    sum_s: float = 0.0

    def __add__(self, other: TimeHistogram) -> TimeHistogram:
        counts = tuple(map(sum, zip(self.counts, other.counts, strict=True)))
        return TimeHistogram(counts, self.sum_s + other.sum_s)

    def __radd__(self, nothing: int) -> TimeHistogram:
        return self


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's reading of one replica. Counters run since its start."""

    num_running: int = 0
    num_waiting: int = 0
    pages_total: int = 0
    """Pages that requests and the radix cache can own (the scratch page is not counted)."""
    pages_free: int = 0
    pages_cached: int = 0
    """Held by the radix cache and by no request."""
    pages_held_peak: int = 0
    """The most pages that requests held at one time, each page counted once."""
    locks: int = 0
    """On cached prefixes: of requests that have a place, and of holds."""
    holds: int = 0
    """Prefixes kept for `GenerateRequest.hold_s`."""
    holds_given_up: int = 0
    """Those that ended before their time, for want of pages."""
    slots_free: int = 0
    slots_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    """Of all requests, counted when they are admitted for the first time."""
    cached_tokens: int = 0
    """Those of them that came from the radix cache."""
    recomputed_tokens: int = 0
    """Tokens computed again after a retraction or a failed step."""
    generated_tokens: int = 0
    requests_finished: int = 0
    requests_aborted: int = 0
    requests_retracted: int = 0
    recompiles: int = 0
    cache_rebuilds: int = 0
    """Times that the KV cache was thrown away after a failed step or a wrong recount."""
    tokens_held: int = 0
    """Room for tokens in the pages that requests hold."""
    generated_per_s: float = 0.0
    """Tokens generated per second, over the last ten."""
    queue_time: TimeHistogram = TimeHistogram()
    """From the arrival of a request in the replica to its first place in a step."""
    step_time: TimeHistogram = TimeHistogram()
    """Of a step on the device."""
    mask_time: TimeHistogram = TimeHistogram()
    """What a step with constrained draws waited for token masks and spent on laying them out."""


class ReplicaLatency(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients of a replica waited lately, in seconds; None before the first."""

    excess_ttft_s: float | None
    """To the first token, beyond what computing the uncached prompt takes."""
    inter_token_s: float | None
    """Per token after it."""


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as the front sees it."""

    replica_id: int
    state: str
    """starting, ready, draining, stopped (on purpose), dead (being restarted) or failed (it died
    too often)."""
    epoch: int
    """Times that it was started again."""
    devices: tuple[str, ...]
    """As the driver numbers them."""
    weight: float
    """Its share under the weighted policy."""
    num_in_flight: int
    """Requests sent to it that have not ended."""
    backlog_tokens: int
    """Uncached prompt tokens of those of them that have no answer yet."""
    stats: EngineStats
    """As it reported last."""
    latency: ReplicaLatency | None = None
    """None unless latencies are followed."""
