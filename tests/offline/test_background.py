"""A loop beside the caller: results, errors, cancelling and its end."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from jaxsgl.offline.background import BackgroundLoop, ShutDown


@pytest.fixture
def loop():
    loop = BackgroundLoop("under test")
    yield loop
    loop.close()
    assert "under test" not in [thread.name for thread in threading.enumerate()]


async def name_of_thread() -> str:
    return threading.current_thread().name


async def fail() -> None:
    raise ValueError("on purpose")


class Sleeper:
    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()

    async def sleep(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


def test_results_and_errors_come_back(loop):
    assert loop.run(name_of_thread()) == "under test"
    with pytest.raises(ValueError, match="on purpose"):
        loop.run(fail())
    assert loop.run(name_of_thread()) == "under test"


def test_cancelling_the_future_cancels_the_coroutine(loop):
    sleeper = Sleeper()
    future = loop.submit(sleeper.sleep())
    assert sleeper.began.wait(60)
    future.cancel()
    assert sleeper.ended.wait(60)


def test_closing_ends_what_runs_and_refuses_what_comes(loop):
    sleeper = Sleeper()
    future = loop.submit(sleeper.sleep())
    assert sleeper.began.wait(60)
    loop.close()
    assert sleeper.ended.is_set()
    with pytest.raises(CancelledError):
        future.result(0)
    with pytest.raises(ShutDown):
        loop.submit(name_of_thread())
    loop.close()


def test_an_interrupt_cancels_what_the_caller_waits_for(loop, monkeypatch):
    sleeper = Sleeper()
    submit = loop.submit

    def submit_and_interrupt(coroutine):
        future = submit(coroutine)

        def result():
            assert sleeper.began.wait(60)
            raise KeyboardInterrupt

        monkeypatch.setattr(future, "result", result)
        return future

    monkeypatch.setattr(loop, "submit", submit_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run(sleeper.sleep())
    assert sleeper.ended.wait(60)


def test_nobody_waits_for_ever_when_it_closes_while_others_submit():
    for _ in range(30):
        loop = BackgroundLoop("busy")
        outcomes: list[object] = []

        def ask(loop: BackgroundLoop = loop, outcomes: list[object] = outcomes) -> None:
            try:
                while True:
                    loop.run(asyncio.sleep(0))
            except ShutDown as error:
                outcomes.append(error)

        askers = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for asker in askers:
            asker.start()
        time.sleep(0.002)
        loop.close()
        for asker in askers:
            asker.join(60)
        assert len(outcomes) == 4
