import asyncio
import logging
from dataclasses import dataclass

import pytest

from jaxsgl.actors.actor import Actor
from jaxsgl.actors.mailbox import MailboxFull
from jaxsgl.actors.service import Service, ServiceDead, State
from tests.actors.cancelling import cancel_at_every_await
from tests.actors.waiting import until


@dataclass(frozen=True)
class Urgent:
    text: str


class Echo(Actor[object]):
    """Answers with the message; "raise" raises and "wait" waits for `gate`."""

    control = (Urgent,)

    def __init__(self, *, capacity: int = 8) -> None:
        super().__init__("echo", capacity=capacity)
        self.gate = asyncio.Event()
        self.handled: list[object] = []
        self.life: list[str] = []

    async def on_start(self):
        self.life.append("start")

    async def on_stop(self):
        self.life.append("stop")

    async def handle(self, message):
        if message == "wait":
            await self.gate.wait()
        self.handled.append(message)
        if message == "raise":
            raise ValueError("as ordered")
        return message


async def started(**options) -> Echo:
    actor = Echo(**options)
    await actor.start()
    return actor


def other_tasks() -> set[asyncio.Task]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_ask_tell_and_an_end_in_order():
    actor = await started()
    assert actor.state is State.RUNNING
    assert await actor.ask("a") == "a"
    await actor.tell("b")
    actor.try_tell("c")
    await actor.stop(1)
    assert actor.handled == ["a", "b", "c"]
    assert actor.life == ["start", "stop"]
    assert actor.state is State.DEAD
    assert actor.died.result() is None
    assert not other_tasks()


async def test_control_messages_overtake():
    actor = await started()
    await actor.tell("wait")
    await asyncio.sleep(0)
    await actor.tell("a")
    await actor.tell(Urgent("now"))
    actor.gate.set()
    await actor.stop(1)
    assert actor.handled == ["wait", Urgent("now"), "a"]


async def test_what_an_ask_raises_goes_to_the_asker_and_the_actor_lives_on():
    actor = await started()
    with pytest.raises(ValueError, match="as ordered"):
        await actor.ask("raise")
    assert await actor.ask("a") == "a"
    await actor.stop(1)


async def test_what_a_told_message_raises_ends_the_actor_and_fails_every_ask(caplog):
    actor = await started()
    await actor.tell("wait")
    await actor.tell("raise")
    asks = [asyncio.create_task(actor.ask(n)) for n in range(3)]
    await asyncio.sleep(0)
    actor.gate.set()
    cause = await actor.died
    assert isinstance(cause, ValueError)
    for ask in asks:
        with pytest.raises(ServiceDead):
            await ask
    with pytest.raises(ServiceDead):
        await actor.tell("b")
    with pytest.raises(ServiceDead):
        actor.try_tell("b")
    assert actor.life == ["start", "stop"]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert not other_tasks()


async def test_an_ask_that_times_out_is_not_handled_later():
    actor = await started()
    await actor.tell("wait")
    with pytest.raises(TimeoutError):
        await actor.ask("late", timeout_s=0.01)
    actor.gate.set()
    assert await actor.ask("a") == "a"
    assert actor.handled == ["wait", "a"]
    await actor.stop(1)


async def test_a_full_mailbox():
    actor = await started(capacity=1)
    await actor.tell("wait")
    await asyncio.sleep(0)
    await actor.tell("a")
    with pytest.raises(MailboxFull):
        actor.try_tell("b")
    waiting = asyncio.create_task(actor.tell("b"))
    await asyncio.sleep(0)
    assert not waiting.done()
    actor.gate.set()
    await waiting
    await actor.stop(1)
    assert actor.handled == ["wait", "a", "b"]


async def test_stop_cancels_what_does_not_end_in_time():
    actor = await started()
    stuck = asyncio.create_task(actor.ask("wait"))
    queued = asyncio.create_task(actor.ask("a"))
    await asyncio.sleep(0)
    await actor.stop(0.01)
    for ask in (stuck, queued):
        with pytest.raises(ServiceDead):
            await ask
    assert actor.life == ["start", "stop"]
    assert actor.died.result() is None
    await actor.stop(1)


async def test_a_second_stop_shortens_the_first():
    actor = await started()
    await actor.tell("wait")
    patient = asyncio.create_task(actor.stop(3600))
    await asyncio.sleep(0)
    assert actor.state is State.STOPPING
    await actor.stop(0)
    await patient
    assert actor.state is State.DEAD


class Broken(Service):
    def __init__(self, step: str) -> None:
        super().__init__("broken")
        self.step = step
        self.cleaned_up = False

    async def on_start(self):
        if self.step == "start":
            raise OSError("no such device")
        if self.step == "never starts":
            await asyncio.Event().wait()

    async def run(self):
        if self.step == "run":
            raise OSError("lost device")
        await asyncio.Event().wait()

    async def on_stop(self):
        self.cleaned_up = True
        if self.step == "stop":
            raise OSError("busy device")


async def test_a_failed_start_is_raised_and_cleaned_up():
    service = Broken("start")
    with pytest.raises(OSError, match="no such device"):
        await service.start()
    assert service.cleaned_up
    assert isinstance(service.died.result(), OSError)
    assert not other_tasks()
    with pytest.raises(RuntimeError):
        await service.start()


async def test_a_failed_run_is_visible_and_logged(caplog):
    service = Broken("run")
    await service.start()
    assert isinstance(await service.died, OSError)
    assert service.cleaned_up
    assert "lost device" in caplog.text


async def test_a_failed_clean_up_is_logged_and_does_not_hold_up_the_end(caplog):
    service = Broken("stop")
    await service.start()
    await service.stop(0)
    assert service.state is State.DEAD
    assert "busy device" in caplog.text


async def test_stopping_a_service_that_was_never_started():
    service = Broken("start")
    await service.stop(1)
    assert service.state is State.DEAD
    assert await service.died is None
    assert not service.cleaned_up


async def test_a_start_whose_task_is_stopped_before_its_first_turn_does_not_hang():
    service = Broken("never")
    starting = asyncio.create_task(service.start())
    await asyncio.sleep(0)
    await service.stop(0)
    with pytest.raises(ServiceDead):
        await starting
    assert not other_tasks()


async def test_a_service_that_is_still_starting_is_stopped_at_once():
    service = Broken("never starts")
    starting = asyncio.create_task(service.start())
    await until(lambda: service.state is State.STARTING)
    await asyncio.sleep(0)
    await asyncio.wait_for(service.stop(3600), 10)
    with pytest.raises(ServiceDead):
        await starting
    assert service.cleaned_up


async def test_a_start_that_is_cancelled_leaves_nothing():
    live: list[Echo] = []

    async def start():
        live.append(Echo())
        await live[-1].start()

    async def gone(was_cancelled: bool):
        if was_cancelled and live:
            actor = live.pop()
            assert actor.state in (State.DEAD, State.CREATED)
            assert actor.life in ([], ["start", "stop"])
        assert not other_tasks() or not was_cancelled

    assert await cancel_at_every_await(start, gone) >= 2
    await live.pop().stop(1)


async def test_an_ask_cancelled_at_any_await_leaves_the_actor_as_it_was():
    actor = await started()

    async def usable(was_cancelled: bool):
        assert await asyncio.wait_for(actor.ask("again"), 20) == "again"
        assert not actor._replies
        assert len(actor.mailbox) == 0

    assert await cancel_at_every_await(lambda: actor.ask("a"), usable) >= 2
    await actor.stop(1)
    assert not other_tasks()
