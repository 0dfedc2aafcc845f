"""Errors, time limits, cancelling and dropping: the right exception at the right place, and nothing
left running (which the fixture checks)."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest

import jaxsgl as sgl
from jaxsgl.interface import EngineError, Unavailable
from tests.lang.fake_backend import HANG, FakeBackend


@sgl.function
def single(s: Any) -> None:
    s += "a" + sgl.gen("x") + "b" + sgl.gen("y")


def test_an_error_comes_at_the_first_read(backend: FakeBackend) -> None:
    backend.reply = lambda text: EngineError("broken")
    seen: list[BaseException] = []

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x") + sgl.gen("y")
        for name in ("x", "y"):
            with pytest.raises(EngineError, match="broken") as caught:
                s[name]
            seen.append(caught.value)
        assert s.error() is seen[0]
        s += "more" + sgl.gen("z")
        with pytest.raises(EngineError, match="broken"):
            s["z"]
        with pytest.raises(EngineError, match="broken"):
            s.text()

    with pytest.raises(EngineError, match="broken"):
        program.run(backend=backend)
    assert len(backend.asked) == 1 and "while generating 'x'" in seen[0].__notes__


def test_an_error_that_nobody_reads_comes_at_the_end(backend: FakeBackend) -> None:
    backend.reply = lambda text: EngineError("broken") if text == "aokb" else "ok"
    with pytest.raises(EngineError, match="broken"):
        single.run(backend=backend)
    state = single.run(backend=backend, errors="store")
    assert state["x"] == "ok" and state.text() == "aokb"
    with pytest.raises(EngineError):
        state["y"]
    assert isinstance(state.error(), EngineError)


def test_an_error_in_one_of_fifty_branches(backend: FakeBackend) -> None:
    backend.reply = lambda text: EngineError("broken") if text == "17" else "ok"

    @sgl.function
    def program(s: Any, reads: bool) -> list[str]:
        for i in range(50):
            with sgl.branch(name=str(i)) as b:
                b += str(i) + sgl.gen("x")
        good: list[str] = []
        for i in range(50 if reads else 0):
            try:
                good.append(s[f"{i}.x"])
            except EngineError:
                assert i == 17
        return good

    state = program.run(backend=backend, reads=True)
    assert state.ret_value == ["ok"] * 49  # the program has dealt with it
    with pytest.raises(EngineError, match="broken"):
        program.run(backend=backend, reads=False)


def test_an_error_of_a_fork_ends_its_join(backend: FakeBackend) -> None:
    backend.reply = lambda text: EngineError("broken") if text == "b" else "ok"

    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(3)
        forks += ["a", "b", "c"]
        forks += sgl.gen("x")
        forks.join()
        s["x"]

    with pytest.raises(EngineError, match="broken"):
        program.run(backend=backend)


def test_what_follows_a_failed_fork_fails_with_it(backend: FakeBackend) -> None:
    backend.reply = lambda text: EngineError("broken")

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x")
        fork = s.fork(2)[0]
        fork += sgl.gen("y")
        fork["y"]

    with pytest.raises(EngineError, match="broken"):
        program.run(backend=backend)
    assert len(backend.asked) == 1


def test_a_variable_that_nobody_sets(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x")
        s["nobody"]

    with pytest.raises(sgl.UnknownVariable, match="nothing sets a variable 'nobody'; there are: x"):
        program.run(backend=backend)
    with pytest.raises(sgl.UnknownVariable):
        single.run(backend=backend)["nobody"]
    streaming = single.run(backend=backend, stream=True)
    with pytest.raises(sgl.UnknownVariable):
        streaming["nobody"]  # asked perhaps while the program runs
    with pytest.raises(KeyError):
        streaming["nobody"]


def test_an_error_in_the_body_ends_what_it_began(backend: FakeBackend) -> None:
    backend.reply = lambda text: HANG

    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(5)
        forks += sgl.gen("x")
        s.text()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        program.run(backend=backend)


@pytest.mark.parametrize("reads", [True, False])
def test_a_time_limit(backend: FakeBackend, reads: bool) -> None:
    backend.reply = lambda text: HANG

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x")
        s.fork(2).__iadd__(sgl.gen("y"))
        if reads:
            s["x"]

    with pytest.raises(sgl.RunTimeout, match=r"more than its 0.1 s"):
        program.run(backend=backend, timeout_s=0.1)  # else it would hang
    assert issubclass(sgl.RunTimeout, TimeoutError)


def test_a_time_limit_that_is_not_reached_leaves_no_timer(backend: FakeBackend) -> None:
    single.run(backend=backend, timeout_s=3600)
    assert backend.loop.run(_other_tasks()) == 0


async def _other_tasks() -> int:
    """Those that do not end in a few turns of the loop."""
    for _ in range(1000):
        if len(asyncio.all_tasks()) == 2:  # this one, and the loop's own
            break
        await asyncio.sleep(0)
    return len(asyncio.all_tasks()) - 2


def test_reading_with_a_time_limit_leaves_the_run_alone(backend: FakeBackend) -> None:
    gate = threading.Event()
    backend.reply = lambda text: "ok" if gate.wait(60) else "late"
    state = single.run(backend=backend, stream=True)
    with pytest.raises(TimeoutError):
        state.get("x", timeout_s=0.01)
    gate.set()
    assert state["y"] == "ok"


def test_cancelling(backend: FakeBackend) -> None:
    backend.reply = lambda text: HANG
    state = single.run(backend=backend, stream=True)
    reading: list[BaseException] = []

    def read() -> None:
        try:
            state["x"]
        except sgl.RunCancelled as error:
            reading.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    state.cancel()
    state.cancel()
    reader.join(60)
    assert len(reading) == 1 and isinstance(state.error(), sgl.RunCancelled)
    with pytest.raises(sgl.RunCancelled):
        list(state.text_iter())


def test_a_run_that_is_dropped_ends(backend: FakeBackend) -> None:
    backend.reply = lambda text: HANG
    state = single.run(backend=backend, stream=True)
    until = time.monotonic() + 60
    while not backend.num_running and time.monotonic() < until:
        time.sleep(0.001)
    assert backend.num_running == 1
    del state
    gc.collect()


def test_an_interrupt_ends_the_run(backend: FakeBackend) -> None:
    backend.reply = lambda text: HANG

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program.run(backend=backend)


def test_a_back_end_that_ends(backend: FakeBackend) -> None:
    backend.reply = lambda text: HANG
    state = single.run(backend=backend, stream=True)
    until = time.monotonic() + 60
    while not backend.num_running and time.monotonic() < until:
        time.sleep(0.001)
    backend.loop.close()
    with pytest.raises(sgl.RunCancelled):
        state["x"]
    with pytest.raises(Unavailable):
        single.run(backend=backend)


def test_streams(backend: FakeBackend) -> None:
    backend.reply = lambda text: "word"
    state = single.run(backend=backend, stream=True)
    assert "".join(state.text_iter("y")) == "word"
    assert list(state.text_iter("x")) == ["w", "o", "r", "d"]
    assert "".join(state) == "".join(state.text_iter()) == state.text() == "awordbword"


def test_a_stream_ends_with_its_error(backend: FakeBackend) -> None:
    backend.reply = lambda text: EngineError("broken") if text.endswith("b") else "ok"
    state = single.run(backend=backend, stream=True)
    pieces: list[str] = []
    with pytest.raises(EngineError, match="broken"):
        pieces.extend(state.text_iter("x"))
        pieces.extend(state.text_iter("y"))
    assert "".join(pieces) == "ok"
    with pytest.raises(EngineError, match="broken"):
        list(state)


async def test_streams_in_an_event_loop(backend: FakeBackend) -> None:
    state = single.run(backend=backend, stream=True)
    assert [piece async for piece in state.text_async_iter("x")] == ["o", "k"]
    assert "".join([piece async for piece in state]) == "aokbok"
    assert await state.async_get("y") == "ok"
    with pytest.raises(sgl.UnknownVariable):
        await state.async_get("nobody")


async def test_running_in_an_event_loop(backend: FakeBackend) -> None:
    assert (await single.async_run(backend=backend))["y"] == "ok"
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def reply(text: str) -> object:
        loop.call_soon_threadsafe(asked.set)
        return HANG

    backend.reply = reply
    running = asyncio.create_task(single.async_run(backend=backend))
    await asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_the_first_error_of_a_batch_ends_the_other_runs(backend: FakeBackend) -> None:
    backend.reply = lambda text: EngineError("broken") if text == "3" else HANG

    @sgl.function
    def program(s: Any, n: int) -> None:
        s += str(n) + sgl.gen("x")

    with pytest.raises(EngineError, match="broken"):
        program.run_batch([{"n": n} for n in range(6)], backend=backend, num_threads=6)
