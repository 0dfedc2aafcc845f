"""The checks of this folder find every mistake they are meant to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from jaxsgl.cache.errors import AccountingError, LeaseError
from jaxsgl.scheduling.scheduler import Scheduler, SchedulingError
from tests.fake_runner import expected_tokens, make_limits
from tests.scheduling.defects import (
    DEFECTS,
    AppliesTwiceToEnded,
    ForgetsSlotOfAborted,
    FreesWhileInFlight,
    HoldsForNobody,
    KeepsHoldsAfterFailure,
    KeepsTreeAfterFailure,
    LosesDrawOfRetracted,
    SharesBeforeRetire,
    WaitsForHolds,
)
from tests.scheduling.scheduler_machine import SchedulerMachine
from tests.scheduling.test_scheduler import Bench, prompts

FOUND = (AssertionError, SchedulingError, AccountingError, LeaseError)
BROKEN = (*FOUND, KeyError, ValueError, IndexError)
"""A scheduler in disorder may also break down before it is checked."""

each_defect = pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)


# -- The shortest story that betrays each of them.


def abort_while_a_step_is_on_its_way(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(scheduler_class=scheduler_class)
    bench.add("a", [1, 2, 3], max_tokens=30, ignore_eos=True)
    bench.step()
    bench.scheduler.abort("a", "gone")
    bench.scheduler.check()


def look_right_behind_the_dispatch_of_a_prompt(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(scheduler_class=scheduler_class)
    bench.add("a", prompts(1, 10)[0], max_tokens=3)
    assert bench.scheduler.plan_step() is not None
    bench.scheduler.check()


def run_out_of_pages(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(make_limits(num_pages=49), scheduler_class=scheduler_class)
    many = prompts(8, 6)
    for i, prompt in enumerate(many):
        bench.add(str(i), prompt, max_tokens=40, ignore_eos=True)
    answers = bench.run()
    assert bench.scheduler.stats().requests_retracted > 0
    for i, prompt in enumerate(many):
        assert answers[str(i)].token_ids == expected_tokens(prompt, 40, ignore_eos=True)


def abort_while_nothing_is_on_its_way(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(depth=0, scheduler_class=scheduler_class)
    bench.add("a", [1, 2, 3], max_tokens=30, ignore_eos=True)
    bench.step()
    bench.scheduler.abort("a", "gone")
    bench.scheduler.check()


def listen_after_an_abort(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(scheduler_class=scheduler_class)
    bench.add("a", [1, 2, 3], max_tokens=30, ignore_eos=True)
    for _ in range(3):
        bench.step()
    bench.scheduler.abort("a", "gone")
    bench.collect()
    told = list(bench.answers["a"].token_ids)
    assert bench.run()["a"].token_ids == told


def ask_again_after_a_failure(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(scheduler_class=scheduler_class)
    (prompt,) = prompts(1, 17)
    bench.add("a", prompt, max_tokens=20, ignore_eos=True)
    for _ in range(3):
        bench.step()
    bench.in_flight.clear()
    bench.runner.reset()
    bench.scheduler.restart()
    answers = bench.run()
    assert answers["a"].token_ids == expected_tokens(prompt, 20, ignore_eos=True)


def ask_for_the_pages_of_a_hold(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(make_limits(num_pages=17), scheduler_class=scheduler_class)
    kept, large = prompts(2, 44)
    bench.add("kept", kept[:28], max_tokens=0, hold_s=60)
    bench.run()
    bench.add("large", large, max_tokens=4, ignore_eos=True)
    assert bench.run()["large"].token_ids == expected_tokens(large, 4, ignore_eos=True)


def let_go_of_what_is_not_computed_yet(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(scheduler_class=scheduler_class)
    bench.add("kept", prompts(1, 20)[0], max_tokens=0, hold_s=60)
    bench.scheduler.let_go("kept")
    bench.run()
    assert bench.scheduler.stats().holds == 0


def fail_while_something_is_held(scheduler_class: type[Scheduler]) -> None:
    bench = Bench(scheduler_class=scheduler_class)
    bench.add("kept", prompts(1, 20)[0], max_tokens=0, hold_s=60)
    bench.run()
    bench.runner.reset()
    bench.scheduler.restart()
    bench.scheduler.check()
    bench.run()


REPLAYS: Mapping[type[Scheduler], Callable[[type[Scheduler]], None]] = MappingProxyType(
    {
        FreesWhileInFlight: abort_while_a_step_is_on_its_way,
        SharesBeforeRetire: look_right_behind_the_dispatch_of_a_prompt,
        LosesDrawOfRetracted: run_out_of_pages,
        ForgetsSlotOfAborted: abort_while_nothing_is_on_its_way,
        AppliesTwiceToEnded: listen_after_an_abort,
        KeepsTreeAfterFailure: ask_again_after_a_failure,
        WaitsForHolds: ask_for_the_pages_of_a_hold,
        HoldsForNobody: let_go_of_what_is_not_computed_yet,
        KeepsHoldsAfterFailure: fail_while_something_is_held,
    }
)


@each_defect
def test_replay_passes_without_the_defect(defect: type[Scheduler]) -> None:
    REPLAYS[defect](Scheduler)


@each_defect
def test_replay_finds_the_defect(defect: type[Scheduler]) -> None:
    with pytest.raises(FOUND):
        REPLAYS[defect](defect)


@pytest.mark.long
@each_defect
def test_machine_finds_the_defect(defect: type[Scheduler]) -> None:
    class Machine(SchedulerMachine):
        scheduler_class = defect

    search = settings(
        max_examples=20_000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(BROKEN):
        run_state_machine_as_test(Machine, settings=search)
