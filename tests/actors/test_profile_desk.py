"""One profile at a time, which ends when it is told to, when its time is over, or with the
replica."""

from __future__ import annotations

import asyncio

from jaxsgl.actors.messages import Reply, StartProfile, StopProfile, ToFront
from jaxsgl.actors.profile_desk import IN_PROGRESS, NONE_TAKEN, ProfileDesk
from tests.actors.waiting import until


class Profiler:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failure: Exception | None = None

    def start(self, folder: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append(folder)

    def stop(self) -> None:
        self.calls.append("stop")


async def test_one_at_a_time() -> None:
    profiler, sent = Profiler(), list[ToFront]()
    desk = ProfileDesk(sent.append, start=profiler.start, stop=profiler.stop)
    desk.take(StopProfile(1))
    desk.take(StartProfile(2, "a", 60))
    desk.take(StartProfile(3, "b", 60))
    desk.take(StopProfile(4))
    desk.take(StartProfile(5, "c", 60))
    await until(lambda: len(sent) == 5)
    assert sent == [Reply(1, NONE_TAKEN), Reply(2), Reply(3, IN_PROGRESS), Reply(4), Reply(5)]
    await desk.stop()
    assert profiler.calls == ["a", "stop", "c", "stop"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_forgotten_profile_ends() -> None:
    profiler, sent = Profiler(), list[ToFront]()
    desk = ProfileDesk(sent.append, start=profiler.start, stop=profiler.stop)
    desk.take(StartProfile(1, "a", 0.01))
    await until(lambda: profiler.calls == ["a", "stop"])
    desk.take(StopProfile(2))
    await until(lambda: Reply(2, NONE_TAKEN) in sent)
    await desk.stop()
    assert profiler.calls == ["a", "stop"]


async def test_a_profiler_that_fails_is_told_of() -> None:
    profiler, sent = Profiler(), list[ToFront]()
    profiler.failure = OSError("no room")
    desk = ProfileDesk(sent.append, start=profiler.start, stop=profiler.stop)
    desk.take(StartProfile(1, "a", 60))
    await until(lambda: sent == [Reply(1, "the profiler failed: OSError")])
    profiler.failure = None
    desk.take(StartProfile(2, "a", 60))
    await until(lambda: Reply(2) in sent)
    await desk.stop()
