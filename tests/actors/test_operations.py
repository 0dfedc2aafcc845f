"""Operations between steps: what runs goes on afterwards, whatever came of them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from jaxsgl.actors.messages import Abort, Admit, Drain, Drained, Operate, Operated, ToFront
from jaxsgl.actors.operation_desk import OperationDesk, OperationPrepared
from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.interface import (
    EngineOperation,
    OperationReport,
    ReleaseMemory,
    ResumeMemory,
    SamplingParams,
    UpdateWeights,
)
from jaxsgl.step import Change
from tests.actors.scheduler_rig import HeldRunner, Rig
from tests.actors.waiting import until
from tests.fake_runner import FakeRunner, expected_tokens

PROMPT = list(range(1, 18))
ANSWER = expected_tokens(PROMPT, 8, ignore_eos=True)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(HeldRunner())
    await rig.actor.start()
    yield rig
    await rig.close()


def answers(rig: Rig) -> dict[int, Operated]:
    return {m.ask_id: m for m in rig.sent if isinstance(m, Operated)}


async def operate(rig: Rig, ask_id: int, operation: EngineOperation) -> Operated:
    rig.actor.deliver(Operate(ask_id, operation))
    await until(lambda: ask_id in answers(rig))
    return answers(rig)[ask_id]


async def test_between_steps_and_running_requests_go_on(rig: Rig) -> None:
    rig.admit("r", PROMPT)
    rig.runner.permits.release(3)
    await until(lambda: len(rig.tokens("r")) == 3)
    await until(lambda: len(rig.runner.plans) == 5)
    rig.actor.deliver(Operate(1, UpdateWeights(model_path="m", weight_version="v2")))
    await asyncio.sleep(0.02)
    assert not rig.runner.operations and len(rig.runner.plans) == 5
    rig.runner.let_all_end()
    await rig.ended("r")
    report = answers(rig)[1].report
    assert report and report.paused_s > 0
    assert report == OperationReport(weight_version="v2", released=(), paused_s=report.paused_s)
    assert rig.tokens("r") == ANSWER
    assert rig.rows("r")[-1].weight_version == "v2"
    assert rig.actor.stats().cache_rebuilds == 0
    await rig.check_idle()


class TimedRunner(RunnerActor):
    """Preparing takes 5 s of its clock, the change 2 s."""

    def __init__(self) -> None:
        super().__init__(FakeRunner())
        self.now_s = 0.0

    async def prepare(self, operation: EngineOperation) -> Change:
        self.now_s += 5.0
        return await super().prepare(operation)

    async def change(self, change: Change) -> OperationReport:
        self.now_s += 2.0
        return await super().change(change)


async def test_a_pause_is_from_the_end_of_the_steps_on() -> None:
    runner, sent, prepared = TimedRunner(), list[ToFront](), list[OperationPrepared]()
    desk = OperationDesk(runner, sent.append, prepared.append, lambda: runner.now_s)
    desk.take(1, UpdateWeights(model_path="m"))
    await until(lambda: bool(prepared))
    desk.prepared(prepared[0])
    runner.now_s += 3.0  # which steps still run
    await desk.carry_out()
    (answer,) = sent
    assert isinstance(answer, Operated) and answer.report and answer.report.paused_s == 2.0
    await runner.stop()


async def test_the_tree_is_dropped(rig: Rig) -> None:
    rig.runner.let_all_end()
    rig.admit("r", PROMPT)
    await rig.ended("r")
    assert rig.rows("r")[-1].weight_version == "default"
    assert rig.actor.stats().pages_cached > 0
    await operate(rig, 1, UpdateWeights(model_path="m"))
    assert rig.actor.stats().pages_cached == 0
    await rig.check_idle()


@pytest.mark.parametrize(
    ("order", "refused"), [("refuse", True), ("change", True), ("fail", False)]
)
async def test_what_comes_to_nothing_disturbs_nobody(rig: Rig, order: str, refused: bool) -> None:
    rig.runner.let_all_end()
    rig.admit("cached", PROMPT)
    await rig.ended("cached")
    num_cached = rig.actor.stats().pages_cached
    answered = await operate(rig, 1, UpdateWeights(model_path=order))
    assert answered.report is None and answered.error and answered.refused == refused
    assert rig.actor.stats().pages_cached == (num_cached if refused else 0)
    assert (await operate(rig, 2, UpdateWeights(model_path="m"))).report
    await rig.check_idle()


async def test_a_runner_of_no_use_ends_the_replica() -> None:
    rig = Rig()
    await rig.actor.start()
    rig.admit("r", PROMPT)
    rig.actor.deliver(Operate(1, UpdateWeights(model_path="break")))
    assert isinstance(await rig.actor.died, RuntimeError)
    await rig.close()


async def test_many_at_once_in_their_order(rig: Rig) -> None:
    rig.runner.let_all_end()
    rig.admit("r", PROMPT)
    orders = [UpdateWeights(model_path=name) for name in ("a", "refuse", "b", "fail", "c")]
    for ask_id, order in enumerate(orders):
        rig.actor.deliver(Operate(ask_id, order))
    await until(lambda: len(answers(rig)) == 5)
    assert [each.model_path for each in rig.runner.operations] == ["a", "b", "c"]
    await rig.ended("r")
    assert rig.tokens("r") == ANSWER
    await rig.check_idle()


async def test_requests_wait_for_released_memory(rig: Rig) -> None:
    rig.admit("running", PROMPT)
    rig.runner.permits.release(3)
    await until(lambda: len(rig.tokens("running")) == 3)
    rig.actor.deliver(Operate(1, ReleaseMemory()))
    rig.runner.let_all_end()
    await until(lambda: 1 in answers(rig))
    rig.admit("new", PROMPT)
    rig.admit("gone", PROMPT)
    late = SamplingParams(max_tokens=4, seed=0)
    rig.actor.deliver(Admit("late", PROMPT, late, timeout_s=0.01))
    rig.actor.deliver(Abort("gone", "on purpose"))
    await rig.ended("late", "gone")
    assert rig.actor.stats().num_waiting == 2
    report = (await operate(rig, 2, ResumeMemory(parts=("weights",)))).report
    assert report and report.released == ("kv_cache",)
    await operate(rig, 3, ResumeMemory())
    await rig.ended("running", "new")
    assert rig.tokens("running") == rig.tokens("new") == ANSWER
    await rig.check_idle()


async def test_draining_does_not_wait_for_memory(rig: Rig) -> None:
    await operate(rig, 1, ReleaseMemory())
    rig.admit("r", PROMPT)
    rig.actor.deliver(Drain(0.05))
    await until(lambda: Drained() in rig.sent)
    finish = rig.finish("r")
    assert finish and finish.kind == "shutdown"


async def test_stopped_with_operations_waiting(rig: Rig) -> None:
    rig.admit("r", PROMPT)
    await until(lambda: len(rig.runner.plans) == 2)
    for ask_id in range(3):
        rig.actor.deliver(Operate(ask_id, ReleaseMemory()))
    await asyncio.sleep(0.02)
    rig.runner.let_all_end()
    await rig.actor.stop(5)
