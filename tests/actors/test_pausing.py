"""A pause holds every step back, each mode in its way, and ends without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from jaxsgl.actors.messages import Admit, Drain, Drained, FlushCache, Pause, Reply, Resume
from jaxsgl.actors.scheduler_actor import BUSY
from jaxsgl.interface import SamplingParams
from tests.actors.scheduler_rig import HeldRunner, Rig
from tests.actors.waiting import until
from tests.fake_runner import expected_tokens

PROMPT = list(range(1, 18))
EXPECTED = expected_tokens(PROMPT, 8, ignore_eos=True)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """One request runs, with two steps of it on the device."""
    rig = Rig(HeldRunner())
    await rig.actor.start()
    rig.admit("r", PROMPT)
    await until(lambda: len(rig.runner.plans) == 2)
    yield rig
    await rig.close()


async def pause(rig: Rig, mode: str) -> None:
    rig.actor.deliver(Pause(1, mode))
    await asyncio.sleep(0.01)
    assert Reply(1) not in rig.sent  # steps are on the device
    rig.runner.let_all_end()
    await until(lambda: Reply(1) in rig.sent)


async def goes_on(rig: Rig) -> None:
    rig.actor.deliver(Resume(2))
    await until(lambda: Reply(2) in rig.sent)


@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_requests_go_on_as_if_nothing_had_been(rig: Rig, mode: str) -> None:
    await pause(rig, mode)
    rig.admit("later", PROMPT)
    num_plans = len(rig.runner.plans)
    await asyncio.sleep(0.02)
    assert len(rig.runner.plans) == num_plans
    stats = rig.actor.stats()
    assert (stats.num_running, stats.num_waiting) == ((1, 1) if mode == "in_place" else (0, 2))
    await goes_on(rig)
    await rig.ended("r", "later")
    assert rig.tokens("r") == rig.tokens("later") == EXPECTED
    await rig.check_idle()


async def test_abort_ends_what_runs_and_later_requests_wait(rig: Rig) -> None:
    await pause(rig, "abort")
    await rig.ended("r")
    finish = rig.finish("r")
    assert finish is not None and finish.kind == "abort"
    rig.admit("later", PROMPT)
    await asyncio.sleep(0.02)
    assert rig.rows("later") == []
    await goes_on(rig)
    await rig.ended("later")
    assert rig.tokens("later") == EXPECTED
    await rig.check_idle()


@pytest.mark.parametrize(("mode", "error"), [("in_place", BUSY), ("retract", None)])
async def test_flushing_during_a_pause(rig: Rig, mode: str, error: str | None) -> None:
    await pause(rig, mode)
    rig.actor.deliver(FlushCache(3))
    await until(lambda: Reply(3, error) in rig.sent)
    stats = rig.actor.stats()
    assert (stats.pages_free == stats.pages_total) == (mode == "retract")
    await goes_on(rig)
    await rig.ended("r")
    assert rig.tokens("r") == EXPECTED
    await rig.check_idle()


async def test_deadlines_and_aborts_hold_during_a_pause(rig: Rig) -> None:
    await pause(rig, "in_place")
    sampling = SamplingParams(max_tokens=2, seed=0)
    rig.actor.deliver(Admit("timed", PROMPT, sampling, timeout_s=0.05))
    await rig.ended("timed")
    finish = rig.finish("timed")
    assert finish is not None and finish.kind == "deadline"
    await goes_on(rig)
    await rig.ended("r")
    await rig.check_idle()


async def test_draining_ends_the_pause(rig: Rig) -> None:
    await pause(rig, "retract")
    rig.actor.deliver(Drain(30.0))
    await until(lambda: Drained() in rig.sent)
    assert rig.tokens("r") == EXPECTED
    rig.check_books()
