"""Progress on the terminal: the stages of a replica's start."""

from __future__ import annotations

from tqdm import tqdm

from jaxsgl.actors.messages import Progress

LOADING = "loading weights"
"""The stage that `runner.build` counts in bytes."""


class Bar(tqdm):
    """Without tqdm's monitor, a thread that outlives every bar. `disable=None` hides a bar where
    stderr is no terminal."""

    monitor_interval = 0


class StartProgress:
    """One bar per stage, gone when the stage is over. Shows nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Bar | None = None

    def show(self, progress: Progress) -> None:
        if self._bar is None or progress.stage != self._stage:
            self.close()
            self._stage = progress.stage
            # Weights are counted in bytes: the bar then says how many GB there are, and GB/s.
            units = {"unit": "B", "unit_scale": True} if progress.stage == LOADING else {}
            self._bar = Bar(
                total=progress.total, desc=progress.stage, leave=False, disable=None, **units
            )
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        """Idempotent."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
