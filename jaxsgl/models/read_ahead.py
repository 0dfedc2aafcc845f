"""Reading what is wanted next while something else is done with what was read before."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple


class Job[Result](NamedTuple):
    num_bytes: int
    """Of memory that it takes at most, its result included."""
    run: Callable[[], Result]


@contextlib.contextmanager
def reading_ahead[Result](
    jobs: Sequence[Job[Result]], max_bytes: int, num_threads: int
) -> Iterator[Callable[[], Result]]:
    """What to call for the result of each job in turn. It raises what the job raised.

    Beside the job whose result was asked for last, those under way or done are the next ones, at
    most `num_threads` - 1 of them and `max_bytes` together. A job that was not begun ahead runs in
    the caller's thread, and alone: later ones would only make its result late. At the end of the
    block no job runs, and those not begun never will.
    """
    waiting = deque(jobs)
    ahead: deque[tuple[int, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(num_threads, "read-ahead")

    def has_room() -> bool:
        num_bytes = sum(each for each, _ in ahead) + waiting[0].num_bytes
        return len(ahead) < num_threads - 1 and num_bytes <= max_bytes

    def read_ahead() -> None:
        while waiting and has_room():
            job = waiting.popleft()
            ahead.append((job.num_bytes, pool.submit(job.run)))

    def next_result() -> Result:
        if not ahead:
            result = waiting.popleft().run()
            read_ahead()
            return result
        _, wanted = ahead.popleft()
        read_ahead()
        return wanted.result()

    try:
        yield next_result
    finally:
        pool.shutdown(cancel_futures=True)
