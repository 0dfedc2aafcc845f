"""Spans kept and shown."""

import json

from jaxsgl.actors.timeline import Span, Timeline, chrome_trace, write_chrome_trace


def test_the_latest_spans_are_kept_in_order():
    timeline = Timeline(max_spans=3)
    for step_id in range(5):
        timeline.add(Span("plan", step_id, step_id, step_id + 0.5))
    assert [span.step_id for span in timeline.spans()] == [2, 3, 4]


def test_a_chrome_trace_has_microseconds_and_named_tracks(tmp_path):
    spans = [Span("plan", 7, 1.0, 1.25, 2, 33), Span("device", 7, 1.25, 2.0)]
    trace = chrome_trace(spans)
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    plan, device = (event for event in trace["traceEvents"] if event["ph"] == "X")
    assert (plan["name"], plan["ts"], plan["dur"]) == ("plan", 1e6, 0.25e6)
    assert plan["args"] == {"step": 7, "rows": 2, "tokens": 33}
    assert (device["name"], device["ts"], device["dur"]) == ("device", 1.25e6, 0.75e6)
    assert names[plan["tid"]] == "scheduler" and names[device["tid"]] == "device"
    assert len(set(names.values())) == len(names)
    path = tmp_path / "trace.json"
    write_chrome_trace(str(path), spans)
    assert json.loads(path.read_text()) == trace
