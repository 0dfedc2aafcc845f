"""What is counted, under which names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxsgl.actors.times import TimeMeter
from jaxsgl.config import ConfigError
from jaxsgl.interface import (
    EngineStats,
    Finish,
    InvalidGrammar,
    QueueFull,
    ReplicaLatency,
    ReplicaReport,
    TimeHistogram,
)
from jaxsgl.metrics import Metrics

DASHBOARD = Path(__file__).parents[1] / "docs/grafana-dashboard.json"


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(name, value of its first label or "") -> value"""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def test_requests_by_how_they_ended() -> None:
    metrics = Metrics()
    metrics.request_finished(Finish("stop", "x"), 1.5)
    metrics.request_finished(Finish("stop"), 0.5)
    metrics.request_refused()
    metrics.request_failed()
    metrics.request_disconnected()
    found = samples(metrics)
    ends = {label: v for (name, label), v in found.items() if name == "jaxsgl_num_requests_total"}
    assert ends == {"stop": 2, "refused": 1, "error": 1, "disconnected": 1}
    assert found["jaxsgl_e2e_request_latency_seconds_sum", ""] == 2.0


def test_restarts() -> None:
    metrics = Metrics()
    assert samples(metrics)["jaxsgl_replica_restarts_total", ""] == 0
    metrics.replica_restarted()
    assert samples(metrics)["jaxsgl_replica_restarts_total", ""] == 1


def test_latencies() -> None:
    metrics = Metrics()
    metrics.first_token(0.2)
    metrics.later_tokens(0.09, 3)
    metrics.event_loop_lag(0.003)
    found = samples(metrics)
    assert found["jaxsgl_time_to_first_token_seconds_bucket", "0.1"] == 0
    assert found["jaxsgl_time_to_first_token_seconds_bucket", "0.25"] == 1
    assert found["jaxsgl_inter_token_latency_seconds_bucket", "0.03"] == 1
    assert found["jaxsgl_event_loop_lag_seconds_sum", ""] == 0.003


def test_engine_is_read_at_each_scrape() -> None:
    metrics = Metrics()
    stats = EngineStats()
    metrics.watch_engine(lambda: stats)
    assert samples(metrics)["jaxsgl_token_usage", ""] == 0.0
    stats = EngineStats(
        num_running=2, num_waiting=3, pages_total=8, pages_free=2, pages_cached=4, recompiles=1
    )
    found = samples(metrics)
    assert found["jaxsgl_num_running_reqs", ""] == 2
    assert found["jaxsgl_num_queue_reqs", ""] == 3
    assert found["jaxsgl_token_usage", ""] == 0.25
    assert found["jaxsgl_recompiles_total", ""] == 1


def test_every_statistic_of_the_engine_is_exposed() -> None:
    zero, exposed = Metrics(), Metrics()
    zero.watch_engine(EngineStats)
    fields = msgspec.structs.fields(EngineStats)
    assert {field.type for field in fields} == {int, float, TimeHistogram}
    values: dict[str, Any] = {}
    for index, field in enumerate(fields, start=1000):
        is_histogram = field.type is TimeHistogram
        values[field.name] = TimeHistogram(sum_s=index) if is_histogram else index
    exposed.watch_engine(lambda: EngineStats(**values))
    expected = set(range(1000, 1000 + len(fields)))
    assert expected <= set(samples(exposed).values())
    assert not expected & set(samples(zero).values())


def test_histograms_of_the_engine() -> None:
    metrics, meter = Metrics(), TimeMeter()
    for seconds in (0.0005, 0.03, 0.03, 100.0):
        meter.observe(seconds)
    metrics.watch_engine(lambda: EngineStats(step_time=meter.reading()))
    found = samples(metrics)
    name = "jaxsgl_step_time_seconds_bucket"
    ends = ("0.001", "0.025", "0.05", "30.0", "+Inf")
    assert [found[name, end] for end in ends] == [1, 1, 3, 3, 4]
    assert found["jaxsgl_step_time_seconds_count", ""] == 4
    assert found["jaxsgl_step_time_seconds_sum", ""] == pytest.approx(100.0605)


def test_histograms_add_up() -> None:
    meter = TimeMeter()
    meter.observe(0.5)
    total = sum([meter.reading(), TimeHistogram(), meter.reading()])
    assert total == TimeHistogram(tuple(2 * n for n in meter.reading().counts), 1.0)


def test_errors_by_type_and_code() -> None:
    metrics = Metrics()
    metrics.error(QueueFull("full"))
    metrics.error(InvalidGrammar("bad"))
    metrics.error(InvalidGrammar("worse"))
    lines = metrics.exposition().decode().splitlines()
    assert 'jaxsgl_errors_total{code="none",type="rate_limit_error"} 1.0' in lines
    assert 'jaxsgl_errors_total{code="invalid_grammar",type="invalid_request_error"} 2.0' in lines


def test_prefix_gives_the_names_that_dashboards_know() -> None:
    metrics = Metrics("sglang", "my-model")
    metrics.watch_engine(EngineStats)
    metrics.request_refused()
    families = text_string_to_metric_families(metrics.exposition().decode())
    found = [sample for family in families for sample in family.samples]
    assert {sample.labels.get("model_name") for sample in found} == {"my-model"}
    names = {sample.name for sample in found}
    assert {
        "sglang:num_used_tokens",
        "sglang:gen_throughput",
        "sglang:cache_hit_rate",
        "sglang:queue_time_seconds_bucket",
        "sglang:num_requests_total",
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        "sglang:token_usage",
        "sglang:prompt_tokens_total",
        "sglang:generation_tokens_total",
        "sglang:cached_tokens_total",
        "sglang:num_aborted_requests_total",
        "sglang:time_to_first_token_seconds_bucket",
        "sglang:inter_token_latency_seconds_bucket",
        "sglang:e2e_request_latency_seconds_bucket",
    } <= names


def test_a_prefix_of_ones_own() -> None:
    metrics = Metrics("my_team")
    assert ("my_team_event_loop_lag_seconds_sum", "") in samples(metrics)


@pytest.mark.parametrize("prefix", ["", "a b", "1a", "a:", "ä"])
def test_a_prefix_that_no_name_may_have(prefix: str) -> None:
    with pytest.raises(ConfigError, match="--metrics-prefix"):
        Metrics(prefix)


def test_latencies_of_replicas_that_are_followed() -> None:
    def report(replica_id: int, latency: ReplicaLatency | None) -> ReplicaReport:
        return ReplicaReport(
            replica_id=replica_id,
            state="ready",
            epoch=0,
            devices=("0",),
            weight=1.0,
            num_in_flight=0,
            backlog_tokens=0,
            stats=EngineStats(),
            latency=latency,
        )

    reports = [report(0, None)]
    metrics = Metrics()
    metrics.watch_replicas(lambda: reports)
    names = ("jaxsgl_replica_excess_ttft_seconds", "jaxsgl_replica_inter_token_seconds")
    assert not set(names) & {name for name, _ in samples(metrics)}
    reports = [
        report(0, ReplicaLatency(excess_ttft_s=0.5, inter_token_s=None)),
        report(1, ReplicaLatency(excess_ttft_s=None, inter_token_s=0.25)),
    ]
    found = {key: value for key, value in samples(metrics).items() if key[0] in names}
    assert found == {(names[0], "0"): 0.5, (names[1], "1"): 0.25}


def test_every_query_of_the_dashboard_names_a_metric_that_exists() -> None:
    metrics = Metrics()
    metrics.watch_engine(EngineStats)
    metrics.request_refused()
    metrics.error(QueueFull("full"))
    names = {name for name, _ in samples(metrics)}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    used = {name for query in queries for name in re.findall(r"jaxsgl_\w+", query)}
    assert len(queries) > 15 and used - names == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.request_refused()
    assert ("jaxsgl_num_requests_total", "refused") not in samples(second)
