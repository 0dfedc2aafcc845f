"""Runs whose figures can be worked out by hand."""

from __future__ import annotations

from bench.serving.records import Record
from bench.serving.runs import Run
from bench.serving.server_watch import Sample, growth


def record(number: int = 0, due_s: float = 0.0, ttft_s: float = 1.0, gap_s: float = 0.5, **more):
    """Complete: 4 tokens, the last one being its end."""
    events = [due_s + ttft_s + gap_s * n for n in range(4)]
    filled = {"sent_s": due_s, "event_s": events, "end_s": events[-1], "finish": "length"}
    return Record(number, 0, due_s, **(filled | {"input_len": 10, "output_len": 4} | more))


def make_run() -> Run:
    """Two complete requests, one refused, one cut off."""
    cut_off = {"event_s": [3.0], "output_len": 0, "error": "unfinished", "end_s": 8.0}
    records = [
        record(0, cached_len=5),
        record(1, due_s=1.0, ttft_s=3.0, gap_s=1.0, sent_s=1.25),
        record(2, due_s=2.0, event_s=[], end_s=2.5, error="http_503"),
        record(3, due_s=2.0, **cut_off),
    ]
    samples = [
        Sample(
            time_s,
            {
                "num_running": running,
                "num_waiting": 0.0,
                "num_slots": 4.0,
                "prompt_tokens": 100 + 10 * time_s,
                "cached_tokens": 50 + 4 * time_s,
                "recompiles": 1.0,
                "ttft_sum_s": 8 + time_s,
                "ttft_count": 5 + time_s,
            },
            [{"utilisation": 0.5, "memory_used_bytes": 2.0**30 * (1 + time_s)}],
        )
        for time_s, running in ((0.0, 0.0), (1.0, 2.0), (2.0, 4.0), (3.0, 0.0))
    ]
    return Run(records, samples, growth(samples), 0.0, 2.0, 8.0, 3)
