"""The two threads beside the event loop."""

import asyncio
import threading

import numpy as np
import pytest

from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.step import StepMasks, StepPlan, StepResult
from tests.actors.waiting import until
from tests.fake_runner import make_limits


def plan(step_id: int) -> StepPlan:
    none = np.zeros(0, np.int32)
    return StepPlan(step_id, "decode", *[none] * 8, none.reshape(0, 3))


class Step:
    def __init__(self, runner: "SlowRunner", step_id: int) -> None:
        self.runner = runner
        self.step_id = step_id

    def wait(self) -> StepResult:
        self.runner.permits.acquire()
        self.runner.log.append(f"waited for {self.step_id} in {threading.current_thread().name}")
        return StepResult(self.step_id, np.zeros(0, np.int32), np.zeros(0, np.bool_))


class SlowRunner:
    """Notes who calls what. Steps end when the test permits; odd ones cannot be dispatched."""

    limits = make_limits()
    recompiles = 2

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.log: list[str] = []

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> Step:
        self.log.append(f"dispatched {plan.step_id} in {threading.current_thread().name}")
        if plan.step_id % 2:
            raise ValueError(f"step {plan.step_id} is odd")
        return Step(self, plan.step_id)

    def reset(self) -> None:
        self.log.append(f"reset in {threading.current_thread().name}")


async def test_steps_are_dispatched_in_order_without_waiting_for_results():
    runner = SlowRunner()
    actor = RunnerActor(runner)
    assert actor.limits == runner.limits and actor.recompiles == 2
    results = [actor.submit(plan(step_id)) for step_id in (0, 2, 4)]
    await until(lambda: len(runner.log) == 3)
    assert runner.log == [f"dispatched {step_id} in device_0" for step_id in (0, 2, 4)]
    assert not any(result.done() for result in results)
    runner.permits.release(3)
    assert [(await result).step_id for result in results] == [0, 2, 4]
    assert runner.log[3:] == [f"waited for {step_id} in fetch_0" for step_id in (0, 2, 4)]
    await actor.stop()


async def test_what_a_dispatch_raises_comes_with_its_result_alone():
    runner = SlowRunner()
    actor = RunnerActor(runner)
    runner.permits.release(2)
    good, bad, after = (actor.submit(plan(step_id)) for step_id in (0, 1, 2))
    assert (await good).step_id == 0
    with pytest.raises(ValueError, match="step 1 is odd"):
        await bad
    assert (await after).step_id == 2
    await actor.reset()
    assert runner.log[-1] == "reset in device_0"
    await actor.stop()


async def test_stopping_lets_the_device_end_its_step():
    runner = SlowRunner()
    actor = RunnerActor(runner)
    result = actor.submit(plan(0))
    await until(lambda: runner.log)
    result.cancel()
    stopping = asyncio.create_task(actor.stop())
    await asyncio.wait({result})
    runner.permits.release()
    await stopping
    names = [thread.name for thread in threading.enumerate()]
    assert "device_0" not in names and "fetch_0" not in names
