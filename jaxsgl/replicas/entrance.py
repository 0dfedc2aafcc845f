"""Who is on the way in."""

from __future__ import annotations

from types import TracebackType


class Entrance:
    """A context manager that many tasks may be in at once; it counts them."""

    def __init__(self) -> None:
        self.num_inside = 0

    def __enter__(self) -> None:
        self.num_inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.num_inside -= 1
