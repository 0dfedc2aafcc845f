"""When each part of the last steps ran, shown as a Chrome trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

Phase = Literal["plan", "dispatch", "device", "fetch", "apply", "emit"]

_TRACKS: dict[Phase, str] = {
    "plan": "scheduler",
    "dispatch": "dispatch thread",
    "device": "device",
    "fetch": "fetch",
    "apply": "scheduler",
    "emit": "scheduler",
}
_MAX_SPANS = 6 * 4096


class Span(NamedTuple):
    """One part of one step, on the clock of `time.perf_counter`."""

    phase: Phase
    step_id: int
    begin_s: float
    end_s: float
    num_rows: int = 0
    num_tokens: int = 0


class Timeline:
    """The latest spans of one replica, some thousand steps. Threads may add at any time.

    plan: the scheduler chooses rows. dispatch: arrays are packed and programs launched. device:
    from when the device could begin (dispatch begun, the step before it done) until the draws are
    on the host, so an upper bound of what the device computes. fetch: until the event loop has
    them. apply: the scheduler takes them in. emit: they are handed to whoever waits.
    """

    def __init__(self, max_spans: int = _MAX_SPANS) -> None:
        self._spans: deque[Span] = deque(maxlen=max_spans)

    def add(self, span: Span) -> None:
        self._spans.append(span)

    def spans(self) -> list[Span]:
        """In the order in which they were added."""
        return list(self._spans)  # one step of the interpreter: no thread adds meanwhile


def chrome_trace(spans: Iterable[Span]) -> dict[str, Any]:
    """The JSON object that chrome://tracing and ui.perfetto.dev open."""
    track_ids = {track: n for n, track in enumerate(dict.fromkeys(_TRACKS.values()), start=1)}
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": track_id, "args": {"name": track}}
        for track, track_id in track_ids.items()
    ]
    events = [_event(span, track_ids[_TRACKS[span.phase]]) for span in spans]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


def write_chrome_trace(path: str, spans: Iterable[Span]) -> None:
    """Raises OSError."""
    Path(path).write_bytes(msgspec.json.encode(chrome_trace(spans)))


def _event(span: Span, track_id: int) -> dict[str, Any]:
    args = {"step": span.step_id}
    if span.num_rows:
        args |= {"rows": span.num_rows, "tokens": span.num_tokens}
    return {
        "name": span.phase,
        "ph": "X",
        "ts": span.begin_s * 1e6,
        "dur": (span.end_s - span.begin_s) * 1e6,
        "pid": 1,
        "tid": track_id,
        "args": args,
    }
