"""What is noted of each request. Plain values only: a record is written to JSON as it is."""

from __future__ import annotations

from dataclasses import dataclass, field

UNFINISHED = "unfinished"
"""The error kind of a request that the end of the drain cut off: the client's doing."""
SILENT = "silent"
"""The error kind in its place if the server had said nothing to anybody for a long time."""


@dataclass
class Record:
    """One request. Times are seconds since the run began.

    Latencies count from `due_s`, the moment at which the request should have been sent, not from
    the one at which the client got round to it: a client that is late, or that waits for one of
    `--max-concurrency` places, must not make the server look fast.
    """

    conversation: int
    turn: int
    due_s: float
    sent_s: float | None = None
    event_s: list[float] = field(default_factory=list[float])
    """When each event came that brought tokens."""
    end_s: float | None = None
    input_len: int = 0
    output_len: int = 0
    cached_len: int = 0
    finish: str | None = None
    error: str | None = None
    """Its kind; None of a complete answer."""
    detail: str = ""
    """What the server or the client said about the error."""

    @property
    def id(self) -> str:
        return f"bench-{self.conversation}-{self.turn}"

    @property
    def ok(self) -> bool:
        return self.error is None and self.end_s is not None

    @property
    def failed(self) -> bool:
        """It has an error, and not one that is the client's doing."""
        return self.error not in (None, UNFINISHED)

    @property
    def send_lag_s(self) -> float | None:
        """How late the client was."""
        return None if self.sent_s is None else self.sent_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        return self.event_s[0] - self.due_s if self.event_s else None

    @property
    def e2e_s(self) -> float | None:
        return None if self.end_s is None else self.end_s - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Between events that follow each other."""
        return [b - a for a, b in zip(self.event_s, self.event_s[1:], strict=False)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if len(self.event_s) < 2 or self.output_len < 2:
            return None
        return (self.event_s[-1] - self.event_s[0]) / (self.output_len - 1)
