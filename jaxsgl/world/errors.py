"""How a world ends before its time."""

from __future__ import annotations


class WorldLost(Exception):
    """A replica of several processes cannot go on: one of them is gone, or they went apart. One
    line. All of them start anew."""

    def __init__(self, message: str, *, by_itself: bool) -> None:
        """`by_itself`: what was computed may have brought it down."""
        super().__init__(message)
        self.by_itself = by_itself


def one_line(error: Exception) -> str:
    """An error for a log line or a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
