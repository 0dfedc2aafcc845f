"""The server's own figures, read from /metrics during the load, and the devices' beside them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from bench.serving.client import Clock
from bench.serving.nvml import Nvml

SCRAPE_TIMEOUT_S = 5.0

_SAMPLE = re.compile(r"(?:jaxsgl_|sglang:|vllm:)(\w+)(?:\{.*\})? (\S+)(?: \d+)?")
_NAMES: Mapping[str, str] = {
    "num_running_reqs": "num_running",
    "num_requests_running": "num_running",
    "num_queue_reqs": "num_waiting",
    "num_requests_waiting": "num_waiting",
    "slots_total": "num_slots",
    "prompt_tokens_total": "prompt_tokens",
    "cached_tokens_total": "cached_tokens",
    "prompt_tokens_cached_total": "cached_tokens",
    "generation_tokens_total": "generated_tokens",
    "recompiles_total": "recompiles",
    "num_retracted_requests_total": "retractions",
    "num_preemptions_total": "retractions",
    "time_to_first_token_seconds_sum": "ttft_sum_s",
    "time_to_first_token_seconds_count": "ttft_count",
    "inter_token_latency_seconds_sum": "inter_token_sum_s",
    "inter_token_latency_seconds_count": "inter_token_count",
}
"""What servers call a figure, and what we do."""
GAUGES = ("num_running", "num_waiting", "num_slots")


def parse_metrics(exposition: str) -> dict[str, float]:
    """The figures of `_NAMES` in a Prometheus text; samples of different labels are added up."""
    figures: dict[str, float] = {}
    for line in exposition.splitlines():
        if (sample := _SAMPLE.fullmatch(line)) and (name := _NAMES.get(sample[1])):
            figures[name] = figures.get(name, 0.0) + float(sample[2])
    return figures


@dataclass(frozen=True)
class Sample:
    """One look. What nobody tells is left out."""

    time_s: float
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    devices: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


class ServerWatch:
    """Looks at one server, and at the GPUs of this machine if it is told to."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, clock: Clock, nvml: Nvml | None
    ) -> None:
        self._session = session
        self._url = url.rstrip("/") + "/metrics"
        self._clock = clock
        self._nvml = nvml
        self.samples: list[Sample] = []

    async def look(self) -> None:
        """Add a sample. A server that does not answer leaves it without metrics."""
        devices = [] if self._nvml is None else await asyncio.to_thread(self._nvml.read)
        self.samples.append(Sample(self._clock.now_s(), await self._scrape(), devices))

    async def keep_looking(self, period_s: float) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            await self.look()

    async def _scrape(self) -> dict[str, float]:
        try:
            timeout = aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_S)
            async with self._session.get(self._url, timeout=timeout) as response:
                return parse_metrics(await response.text()) if response.status == 200 else {}
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            return {}


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """What each counter grew by from the first sample to the last that has any.

    Nothing if one went down, as the counters of a server do that was started again.
    """
    read = [sample.metrics for sample in samples if sample.metrics]
    if len(read) < 2:
        return {}
    grown = {
        name: read[-1][name] - value
        for name, value in read[0].items()
        if name not in GAUGES and name in read[-1]
    }
    return {} if any(value < 0 for value in grown.values()) else grown
