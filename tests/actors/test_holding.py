"""Prompts that the scheduler actor keeps for a while."""

from collections.abc import AsyncIterator

import pytest

from jaxsgl.actors.messages import Admit, Drain, Drained, FlushCache, LetGo, Reply
from jaxsgl.interface import SamplingParams
from tests.actors.scheduler_rig import Rig
from tests.actors.waiting import until

PROMPT = list(range(1, 18))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.actor.start()
    yield rig
    await rig.close()


async def hold(rig: Rig, hold_s: float) -> None:
    sampling = SamplingParams(max_tokens=0, seed=0)
    rig.actor.deliver(Admit("kept", PROMPT, sampling, hold_s=hold_s))
    await rig.ended("kept")


async def test_an_idle_actor_ends_a_hold_in_time(rig: Rig) -> None:
    await hold(rig, 0.05)
    await until(lambda: not rig.scheduler.holds)
    await rig.check_idle()


async def test_a_hold_is_let_go(rig: Rig) -> None:
    await hold(rig, 60)
    assert rig.scheduler.idle and rig.actor.stats().holds == rig.actor.stats().locks == 1
    rig.actor.deliver(LetGo("nobody"))
    rig.actor.deliver(LetGo("kept"))
    await until(lambda: not rig.scheduler.holds)
    await rig.check_idle()


async def test_a_flush_is_not_held_up(rig: Rig) -> None:
    await hold(rig, 60)
    rig.actor.deliver(FlushCache(1))
    await until(lambda: Reply(1) in rig.sent)
    stats = rig.actor.stats()
    assert (stats.holds, stats.pages_free) == (0, stats.pages_total)
    await rig.check_idle()


async def test_a_drain_is_not_held_up(rig: Rig) -> None:
    await hold(rig, 60)
    rig.actor.deliver(Drain(30))
    await until(lambda: Drained() in rig.sent)
