"""Jobs whose memory is counted, and what of them runs when."""

from __future__ import annotations

import threading

import pytest

from jaxsgl.models.read_ahead import Job, reading_ahead

WAIT_S = 10.0


class Jobs:
    """Jobs of the sizes given, whose results are their numbers; knows which were begun, and where.

    A result counts as held from when its job begins until `release` is told of it.
    """

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes
        self.threads: dict[int, threading.Thread] = {}
        self.held: set[int] = set()
        self.peak_ahead = 0
        self._lock = threading.Lock()

    def jobs(self) -> list[Job[int]]:
        return [
            Job(size, lambda index=index: self.begin(index))
            for index, size in enumerate(self.sizes)
        ]

    def begin(self, index: int) -> int:
        with self._lock:
            self.threads[index] = threading.current_thread()
            self.held.add(index)
            ahead = sum(self.sizes[each] for each in self.held) - self.sizes[min(self.held)]
            self.peak_ahead = max(self.peak_ahead, ahead)
        return index

    def release(self, index: int) -> None:
        with self._lock:
            self.held.remove(index)


def run_all(jobs: Jobs, max_bytes: int, num_threads: int = 4) -> list[int]:
    results: list[int] = []
    with reading_ahead(jobs.jobs(), max_bytes, num_threads) as next_result:
        for _ in jobs.sizes:
            results.append(next_result())
            jobs.release(results[-1])
    return results


def readers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("read-ahead")]


@pytest.mark.parametrize("max_bytes", [0, 5, 12, 1000])
def test_results_come_in_turn_and_what_is_ahead_is_bounded(max_bytes: int) -> None:
    jobs = Jobs(20, 9, 9, 5, 4, 3, 3, 3, 1, 1)
    assert run_all(jobs, max_bytes) == list(range(10))
    assert jobs.peak_ahead <= max_bytes
    assert not readers()


def test_while_one_result_is_used_the_next_ones_are_made() -> None:
    begun = [threading.Event() for _ in range(5)]
    jobs = [Job(10, event.set) for event in begun]
    with reading_ahead(jobs, 25, 4) as next_result:
        next_result()
        assert begun[1].wait(WAIT_S) and begun[2].wait(WAIT_S)
        assert not begun[3].wait(0.05)  # 30 bytes would be ahead.
        next_result()
        assert begun[3].wait(WAIT_S)


def test_no_more_run_at_a_time_than_there_are_threads() -> None:
    begun = [threading.Event() for _ in range(5)]
    with reading_ahead([Job(1, event.set) for event in begun], 1000, 3) as next_result:
        next_result()
        assert begun[2].wait(WAIT_S)
        assert not begun[3].wait(0.05)


def test_without_room_all_is_done_when_it_is_asked_for_by_who_asks() -> None:
    jobs = Jobs(1, 1, 1)
    run_all(jobs, 0)
    assert set(jobs.threads.values()) == {threading.current_thread()}


def test_what_is_waited_for_from_its_beginning_is_alone() -> None:
    later = threading.Event()

    def first() -> bool:
        return later.wait(0.05)

    with reading_ahead([Job(1, first), Job(1, later.set)], 1000, 4) as next_result:
        assert next_result() is False
        assert later.wait(WAIT_S)


def test_an_error_comes_in_its_turn_and_ends_all() -> None:
    failure = OSError("gone")
    jobs = Jobs(1, 1, 1, 1, 1, 1, 1, 1)

    def fail() -> int:
        raise failure

    work = jobs.jobs()
    work[2] = Job(1, fail)
    with (
        pytest.raises(OSError, match="gone") as caught,
        reading_ahead(work, 1000, 3) as next_result,
    ):
        assert next_result() == 0
        assert next_result() == 1
        next_result()
    assert caught.value is failure
    assert not readers()
    assert 7 not in jobs.threads


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_who_stops_asking_leaves_nothing_running(error: type[BaseException]) -> None:
    let_go, begun = threading.Event(), threading.Event()
    num_done = 0

    def slow() -> None:
        nonlocal num_done
        begun.set()
        let_go.wait(WAIT_S)
        num_done += 1

    jobs = [Job(1, lambda: None), Job(1, slow), *[Job(1, pytest.fail)] * 3]
    with pytest.raises(error), reading_ahead(jobs, 1, 4) as next_result:
        next_result()
        assert begun.wait(WAIT_S)
        threading.Timer(0.05, let_go.set).start()
        raise error
    assert num_done == 1 and not readers()
