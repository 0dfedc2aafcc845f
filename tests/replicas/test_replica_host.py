import asyncio

import pytest

from jaxsgl.actors.messages import (
    Admit,
    Drain,
    Drained,
    Progress,
    Ready,
    Report,
    StartFailed,
    StepOutputs,
    Stop,
)
from jaxsgl.config import EngineConfig
from jaxsgl.interface import SamplingParams
from jaxsgl.replicas.replica_host import Outcome, ReplicaHost
from jaxsgl.world.errors import WorldLost
from tests.actors.cancelling import cancel_at_every_await
from tests.actors.waiting import until
from tests.replicas.fake_replica import FakeReplica


class Hosted:
    """A host that runs a fake replica, and what it sent."""

    def __init__(self, model_path: str | None = None, *, factory=FakeReplica.start) -> None:
        self.sent: list = []
        self.host = ReplicaHost(factory)
        config = EngineConfig(model_path=model_path)
        self.running = asyncio.create_task(self.host.run(config, self.sent.append))

    def kinds(self) -> list[type]:
        return [type(message) for message in self.sent]

    async def end(self) -> Outcome:
        await until(self.running.done)  # a timeout here must not cancel it, that is another end
        outcome = self.running.result()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return outcome


def admit(prompt: bytes, max_tokens: int) -> Admit:
    return Admit("r", list(prompt), SamplingParams(max_tokens=max_tokens, seed=0))


async def test_a_replica_loads_reports_serves_and_drains():
    hosted = Hosted()
    await until(lambda: Report in hosted.kinds())
    assert hosted.kinds()[:4] == [Progress, Progress, Ready, Report]
    hosted.host.on_message(admit(b"ab", 3))
    hosted.host.on_message(Drain(10))
    assert await hosted.end() is Outcome.ORDERED
    rows = [row for message in hosted.sent if type(message) is StepOutputs for row in message.rows]
    assert [row.data for row in rows] == [b"a", b"b", b"a"]
    assert hosted.kinds()[-1] is Drained
    hosted.host.on_message(Stop())  # too late, and of no consequence
    hosted.host.on_closed(None)


async def test_what_comes_while_the_replica_loads_waits_for_it():
    gate = asyncio.Event()

    async def slow_factory(config, send):
        await gate.wait()
        return await FakeReplica.start(config, send)

    hosted = Hosted(factory=slow_factory)
    await asyncio.sleep(0)
    hosted.host.on_message(admit(b"ab", 2))
    gate.set()
    await until(lambda: StepOutputs in hosted.kinds())
    hosted.host.on_message(Stop())
    assert await hosted.end() is Outcome.ORDERED


@pytest.mark.parametrize("message", [Stop(), Drain(60)])
@pytest.mark.parametrize("num_turns", range(4))
async def test_one_that_is_told_to_end_while_it_loads_ends_at_once(message, num_turns):
    hosted = Hosted("load-for-ever")
    for _ in range(num_turns):
        await asyncio.sleep(0)
    hosted.host.on_message(message)
    hosted.host.on_message(message)
    assert await hosted.end() is Outcome.ORDERED


async def test_one_whose_front_is_gone_ends(caplog):
    for model_path in (None, "load-for-ever"):
        hosted = Hosted(model_path)
        await until(lambda hosted=hosted: hosted.sent)
        hosted.host.on_closed(None)
        assert await hosted.end() is Outcome.ORPHANED


async def test_why_it_cannot_be_built_is_said_in_one_line(caplog):
    hosted = Hosted("refuse:no such file: a.gguf")
    assert await hosted.end() is Outcome.START_FAILED
    assert hosted.sent[-1] == StartFailed("no such file: a.gguf")
    assert not caplog.records
    hosted = Hosted("break:index out of range")
    assert await hosted.end() is Outcome.START_FAILED
    assert hosted.sent[-1] == StartFailed("RuntimeError: index out of range")
    assert "Traceback" in caplog.text


async def test_a_failure_while_serving(caplog):
    hosted = Hosted()
    await until(lambda: Ready in hosted.kinds())
    hosted.host.on_message(admit(b"raise", 1))
    assert await hosted.end() is Outcome.FAILED
    assert "the device is lost" in caplog.text


@pytest.mark.parametrize(
    ("by_itself", "outcome"), [(True, Outcome.FAILED), (False, Outcome.WORLD_LOST)]
)
async def test_the_end_of_its_world(caplog, by_itself, outcome):
    class Lost(FakeReplica):
        async def run(self):
            raise WorldLost("rank 1 is gone", by_itself=by_itself)

    hosted = Hosted(factory=Lost.start)
    assert await hosted.end() is outcome
    assert "rank 1 is gone" in caplog.text and "Traceback" not in caplog.text


async def test_cancelled_at_any_await_it_leaves_no_task():
    async def serve():
        hosted = Hosted()
        try:
            await until(lambda: Report in hosted.kinds())
            hosted.host.on_message(Stop())
            await hosted.running
        finally:
            hosted.running.cancel()
            await asyncio.wait({hosted.running})

    async def gone(was_cancelled: bool):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    assert await cancel_at_every_await(serve, gone, max_turns=100_000) > 2
