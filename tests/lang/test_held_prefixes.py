"""What forks have in common stays in the cache of an engine, while others want its pages."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import jaxsgl as sgl
from jaxsgl.config import EngineConfig
from jaxsgl.lang import engine_context
from jaxsgl.offline.offline_engine import OfflineEngine
from tests.fake_runner import FakeRunner, make_limits
from tests.lang.test_on_an_engine import ProgramLetters
from tests.offline.local_replica import FakeFactory

COMMON = "ABCD" * 25
"""25 of the 64 pages."""
NUM_BRANCHES = 6


@pytest.fixture
def engine() -> Iterator[OfflineEngine]:
    runner = FakeRunner(make_limits(num_slots=4))
    with OfflineEngine(EngineConfig(), ProgramLetters(), FakeFactory(runner)) as engine:
        yield engine
        until(lambda: engine.stats().locks == 0)
        stats = engine.stats()
        assert stats.holds == stats.holds_given_up == 0
        assert stats.pages_free + stats.pages_cached == stats.pages_total


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def flood(engine: OfflineEngine, seed: int) -> None:
    """Others come, who begin differently and want all pages: some beside each other."""
    texts = [chr(65 + (seed + i) % 50) + chr(65 + i) * 40 for i in range(8)]
    engine.generate(texts, {"max_new_tokens": 4, "ignore_eos": True}, progress_bar=False)


def cached_of_branches(engine: OfflineEngine) -> list[int]:
    """What each branch of a fork finds in the cache, if the engine is flooded before each."""

    @sgl.function
    def program(s: Any) -> list[int]:
        s += COMMON
        found: list[int] = []
        for i, branch in enumerate(s.fork(NUM_BRANCHES)):
            flood(engine, i)
            branch += chr(65 + i) + sgl.gen("x", max_tokens=4, ignore_eos=True)
            found.append(branch.get_meta_info("x")["cached_tokens"])
        return found

    return program.run(backend=engine).ret_value


def test_a_fork_computes_its_beginning_once(engine: OfflineEngine) -> None:
    assert cached_of_branches(engine) == [len(COMMON)] * NUM_BRANCHES


def test_without_a_hold_it_is_computed_again(
    engine: OfflineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_context, "HOLD_S", None)
    assert cached_of_branches(engine) == [0] * NUM_BRANCHES


def test_a_beginning_that_was_generated_is_held_too(engine: OfflineEngine) -> None:
    @sgl.function
    def program(s: Any) -> int:
        s += COMMON[:92] + sgl.gen("before", max_tokens=8, ignore_eos=True)
        forks = s.fork(2)
        s.text()
        until(lambda: engine.stats().holds == 1)
        flood(engine, 0)
        forks[0] += "A" + sgl.gen("x", max_tokens=4)
        return forks[0].get_meta_info("x")["cached_tokens"]

    # The last token of an answer has no KV before something follows it: here the hold has it.
    assert program.run(backend=engine).ret_value == 100


class Paused:
    """A run of which the forks have begun, and that gets no further before `go_on`."""

    def __init__(self, engine: OfflineEngine, **options: Any) -> None:
        begun, self._may_go_on = threading.Event(), threading.Event()
        may_go_on = self._may_go_on

        @sgl.function
        def program(s: Any, fails: bool) -> None:
            try:  # its time may be over before it has begun
                s += COMMON
                forks = s.fork(3)
                for fork in forks:
                    fork.text()
            finally:
                begun.set()
            assert may_go_on.wait(60)
            if fails:
                raise ValueError("mine")

        self.run = program.run(backend=engine, stream=True, **options)
        assert begun.wait(60)

    def go_on(self) -> None:
        self._may_go_on.set()


@pytest.mark.parametrize("end", ["well", "error", "cancel", "drop", "timeout"])
def test_the_end_of_a_run_ends_its_holds(engine: OfflineEngine, end: str) -> None:
    timeout_s = 0.3 if end == "timeout" else None
    paused = Paused(engine, fails=end == "error", timeout_s=timeout_s)
    if end != "timeout":  # on a slow machine that may be over
        until(lambda: engine.stats().holds == 1)
    if end in ("well", "error"):
        paused.go_on()
        assert (paused.run.error() is None) == (end == "well")
    elif end == "cancel":
        paused.run.cancel()
    elif end == "drop":
        del paused.run
        gc.collect()
    until(lambda: engine.stats().holds == 0)
    paused.go_on()


def test_the_time_of_a_hold_is_limited(
    engine: OfflineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_context, "HOLD_S", 0.05)
    paused = Paused(engine, fails=False)
    until(lambda: engine.stats().holds == 0)
    paused.go_on()
    assert paused.run.error() is None
