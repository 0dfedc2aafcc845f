"""Figures against the same worked out by hand."""

import dataclasses

import pytest

from bench.serving.report import parse_goodput, summarize
from bench.serving.runs import Run
from bench.serving.server_watch import Sample
from bench.serving.terminal import report_lines
from tests.bench.serving.made_runs import make_run, record


def test_the_figures_of_a_run():
    summary = summarize(make_run(), {})
    assert summary["requests"] == 4
    assert (summary["complete"], summary["errors"], summary["unfinished"]) == (2, 1, 1)
    assert summary["errors_by_kind"] == {"http_503": 1}
    assert (summary["sending_s"], summary["drain_s"], summary["elapsed_s"]) == (2.0, 6.0, 8.0)
    assert summary["requests_per_s"] == 2 / 8
    assert summary["input_tokens_per_s"] == 20 / 8
    assert summary["output_tokens_per_s"] == 8 / 8
    assert summary["ttft_s"] == {"mean": 2.0, "p50": 1.0, "p90": 3.0, "p99": 3.0}
    assert summary["inter_token_s"] == {"mean": 0.75, "p50": 0.5, "p90": 1.0, "p99": 1.0}
    assert summary["time_per_output_token_s"]["mean"] == 0.75
    assert summary["e2e_s"] == {"mean": 4.25, "p50": 2.5, "p90": 6.0, "p99": 6.0}
    assert summary["send_lag_s"]["p99"] == 0.25
    assert summary["cached_share"] == 0.25


def test_the_servers_figures_are_of_the_run_alone():
    summary = summarize(make_run(), {})
    assert summary["cache_hit_rate"] == 12 / 30
    assert summary["server_mean_ttft_s"] == 1.0
    assert summary["server_mean_inter_token_s"] is None
    assert summary["recompiles"] == 0
    assert summary["running_requests"] == {"mean": 3.0, "peak": 4.0}
    assert summary["device_utilisation"] == 0.5
    assert summary["device_memory_bytes"] == 3 * 2**30


def test_goodput_is_of_all_that_was_asked():
    def goodput(*bounds):
        return summarize(make_run(), parse_goodput(bounds))["goodput"]

    assert goodput() == {}
    assert goodput("ttft:3000") == {"requests_per_s": 2 / 8, "share": 0.5}
    assert goodput("ttft:2999")["share"] == 0.25
    assert goodput("ttft:3000", "tpot:999")["share"] == 0.25
    assert goodput("e2e:2499")["share"] == 0.0
    for bad in ("ttft", "ttft:", "itl:3"):
        with pytest.raises(ValueError):
            parse_goodput([bad])


def test_an_answer_of_one_token_has_no_time_per_token_to_bound():
    run = Run([record(event_s=[1.0], output_len=1)], elapsed_s=2.0)
    assert summarize(run, parse_goodput(["tpot:1"]))["goodput"]["share"] == 1.0


def test_nothing_measured_is_not_zero():
    summary = summarize(Run(warm_up_error="connect"), {"ttft": 1.0})
    assert summary["errors_by_kind"] == {"warm_up_connect": 1}
    for name in ("requests_per_s", "cache_hit_rate", "recompiles", "device_utilisation"):
        assert summary[name] is None
    assert summary["ttft_s"] == {}
    assert any(line.split() == ["recompiles", "n/a"] for line in report_lines(summary))


def test_the_table_names_what_is_absent_and_what_failed():
    run = make_run()
    run.samples = [dataclasses.replace(sample, devices=[]) for sample in run.samples]
    lines = report_lines(summarize(run, {}))
    table = dict(line.split("  ", 1) for line in lines if line)
    table = {name: value.strip() for name, value in table.items()}
    assert table["device utilisation"] == table["device memory"] == "n/a"
    assert table["errors"] == "http_503 1"
    assert table["end to end"].split() == ["4,250.00", "2,500.00", "6,000.00", "6,000.00"]
    assert table["first token, server's own"] == "1,000.00"


@pytest.mark.parametrize(
    ("records", "failed"),
    [
        ([record()], False),
        ([], True),
        ([record(), record(error="unfinished")], False),
        ([record(error="unfinished")], True),
        ([record(), record(error="timeout")], True),
    ],
)
def test_a_run_fails_if_a_request_did_or_none_came_to_an_end(records, failed):
    assert Run(records).failed == failed


def test_runs_of_one_server_add_up():
    first, second = make_run(), make_run()
    first.add(second)
    assert (first.elapsed_s, first.sending_s, first.num_open_at_end) == (16.0, 4.0, 6)
    assert first.counters["prompt_tokens"] == 60
    moved = first.records[5]
    assert (moved.due_s, moved.sent_s, moved.end_s) == (9.0, 9.25, 15.0)
    assert moved.ttft_s == second.records[1].ttft_s
    assert first.samples[4].time_s == 8.0
    assert [len(first.records), len(first.samples)] == [8, 8]
    assert second.records[1].due_s == 1.0
    empty = Run()
    empty.add(Run(samples=[Sample(1.0)], warm_up_error="timeout"))
    assert empty.warm_up_error == "timeout"
