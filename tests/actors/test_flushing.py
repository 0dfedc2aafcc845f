"""When the scheduler actor flushes, and when it says that it cannot."""

from collections.abc import AsyncIterator

import pytest

from jaxsgl.actors.messages import FlushCache, Reply
from jaxsgl.actors.scheduler_actor import BUSY
from tests.actors.scheduler_rig import HeldRunner, Rig
from tests.actors.waiting import until
from tests.fake_runner import expected_tokens

PROMPT = list(range(1, 18))
END_ID = expected_tokens(PROMPT, 3, ignore_eos=True)[-1]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(HeldRunner())
    await rig.actor.start()
    yield rig
    await rig.close()


async def test_a_running_request_is_in_the_way(rig: Rig) -> None:
    rig.admit("r", PROMPT)
    await until(lambda: len(rig.runner.plans) == 2)
    rig.actor.deliver(FlushCache(1))
    rig.actor.deliver(FlushCache(2))
    rig.runner.permits.release()
    await until(lambda: Reply(2, BUSY) in rig.sent)
    assert Reply(1, BUSY) in rig.sent
    rig.runner.let_all_end()
    await rig.ended("r")
    assert rig.actor.stats().pages_cached > 0
    await rig.check_idle()


async def test_a_step_that_nobody_waits_for_is_waited_for(rig: Rig) -> None:
    """With overlap, one more step is on the device when an end token is read."""
    rig.admit("r", PROMPT, 40, end_token_ids=(END_ID,))
    rig.runner.permits.release(2)
    await until(lambda: len(rig.runner.plans) == 4)
    rig.actor.deliver(FlushCache(1))
    rig.runner.permits.release()
    await until(lambda: rig.finish("r"))
    assert not rig.scheduler.idle
    rig.runner.let_all_end()
    await rig.ended("r")
    await until(lambda: Reply(1) in rig.sent)
    stats = rig.actor.stats()
    assert stats.pages_free == stats.pages_total
    await rig.check_idle()
