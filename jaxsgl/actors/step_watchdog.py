"""Ends a process whose device does not finish a step: no other way out of a stuck program
exists."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

EXIT_CODE = 70


def end_process(waited_s: float) -> None:
    """Show where every thread is, and exit at once: nothing of this process can be trusted."""
    sys.stderr.write(f"no step has finished for {waited_s:.0f} s; the replica gives up\n")
    faulthandler.dump_traceback()
    os._exit(EXIT_CODE)


class StepWatchdog:
    """A thread that looks every so often whether a step is overdue.

    It is a thread because the event loop may be what is stuck. `step_begun` and `step_ended` may be
    called from any thread; a step is overdue when it was begun `limit_s` ago and none has ended
    since.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        on_overdue: Callable[[float], None] = end_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._on_overdue = on_overdue
        self._clock = clock
        self._num_running = 0
        self._last_progress_s = clock()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def step_begun(self) -> None:
        with self._lock:
            if self._num_running == 0:
                self._last_progress_s = self._clock()
            self._num_running += 1

    def step_ended(self) -> None:
        with self._lock:
            self._num_running -= 1
            self._last_progress_s = self._clock()

    def overdue_s(self) -> float | None:
        """Seconds since a step should have ended; None if none is overdue."""
        with self._lock:
            waited_s = self._clock() - self._last_progress_s
            return waited_s if self._num_running and waited_s > self._limit_s else None

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._limit_s / 4)):
            waited_s = self.overdue_s()
            if waited_s is not None:
                self._on_overdue(waited_s)
                return
