"""Many runs, so many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm

from jaxsgl.lang.run import Run

MAX_THREADS = 128
"""Of a batch that does not say. Threads mostly wait; it is the engine that is to be kept busy."""


class _Bar(tqdm):
    monitor_interval = 0  # tqdm's monitor is a thread that outlives every bar


def run_all(
    prepared: Sequence[tuple[Run, Callable[[], None]]],
    num_threads: int | str,
    progress_bar: bool,
    return_exceptions: bool,
) -> list[Any]:
    """The runs, or with `return_exceptions` the errors in their place, in order."""
    if not prepared:
        return []
    runs = [run for run, _ in prepared]
    num = MAX_THREADS if num_threads == "auto" else int(num_threads)
    pool = ThreadPoolExecutor(max(1, min(num, len(runs))), thread_name_prefix="programs")
    try:
        performing = {pool.submit(perform): run for run, perform in prepared}
        with _Bar(total=len(runs), unit="run", disable=not progress_bar) as bar:
            for future in as_completed(performing):
                future.result()
                error = performing[future].error()
                if error is not None and not return_exceptions:
                    raise error
                bar.update()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for run in runs:
            run.cancel()
        raise
    finally:
        pool.shutdown()
    return [run.error() or run for run in runs]
