"""What one run against one server brought."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from bench.serving.records import Record
from bench.serving.server_watch import Sample


@dataclass
class Run:
    """Times are seconds since it began."""

    records: list[Record] = field(default_factory=list[Record])
    samples: list[Sample] = field(default_factory=list[Sample])
    counters: dict[str, float] = field(default_factory=dict[str, float])
    """What the server's counters grew by; empty if it does not tell."""
    start_s: float = 0.0
    """When it began, by `time.perf_counter`."""
    sending_s: float = 0.0
    """How long requests were sent."""
    elapsed_s: float = 0.0
    """Until the last answer ended or was cut off."""
    num_open_at_end: int = 0
    """Requests that were open when sending was over."""
    interrupted: bool = False
    warm_up_error: str | None = None
    """Kind of the failure of a warm-up request; nothing was measured then."""

    def add(self, later: Run) -> None:
        """Append a run against the same server, as if it had begun when this one ended."""
        by_s = self.elapsed_s
        self.records += [shifted(record, by_s) for record in later.records]
        self.samples += [
            dataclasses.replace(sample, time_s=sample.time_s + by_s) for sample in later.samples
        ]
        names = self.counters.keys() | later.counters.keys()
        self.counters = {n: self.counters.get(n, 0) + later.counters.get(n, 0) for n in names}
        self.sending_s += later.sending_s
        self.elapsed_s += later.elapsed_s
        self.num_open_at_end += later.num_open_at_end
        self.interrupted |= later.interrupted
        self.warm_up_error = self.warm_up_error or later.warm_up_error

    @property
    def failed(self) -> bool:
        """Whether the server failed a request, or nothing came to an end."""
        return any(record.failed for record in self.records) or not any(
            record.ok for record in self.records
        )


def shifted(record: Record, by_s: float) -> Record:
    def shift(moment_s: float | None) -> float | None:
        return None if moment_s is None else moment_s + by_s

    return dataclasses.replace(
        record,
        due_s=record.due_s + by_s,
        sent_s=shift(record.sent_s),
        event_s=[moment_s + by_s for moment_s in record.event_s],
        end_s=shift(record.end_s),
    )
