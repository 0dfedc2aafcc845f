"""A leader and its follower do the same things in the same order."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxsgl.interface import OperationFailed, OperationRefused, SamplingParams, UpdateWeights
from jaxsgl.step import SlotOpening, StepPacks, StepPlan
from jaxsgl.world.errors import WorldLost
from jaxsgl.world.follower import Follower, Orders
from jaxsgl.world.leader_runner import LeaderRunner
from jaxsgl.world.orders import Broken, Stop
from tests.world.gathering import DONE, Gathered, GivenMasks, Recorder, gathered, world_config


class Pair:
    def __init__(self, folder: Path) -> None:
        config = world_config(folder)
        self.world: Gathered = gathered(config, [dataclasses.replace(config, node_rank=1)])
        self.here, self.there = Recorder(), Recorder()
        self.leader = LeaderRunner(self.here, self.world.members)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        orders = Orders(self.world.wires[0], lambda: None)
        try:
            Follower(self.there, orders).run()
        except Exception as error:
            orders.say(Broken(str(error)))

    def close(self) -> None:
        self.world.members.stop(Stop())
        self._thread.join()
        self.world.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.close()


def plan(step_id: int) -> StepPlan:
    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    opening = SlotOpening(3, SamplingParams(seed=2**63, logit_bias={5: 1.5}), ints(1, 2), 1, (7,))
    return StepPlan(
        step_id,
        "shared",
        slot=ints(3),
        q_start=ints(0, 1),
        token_ids=ints(step_id),
        kv_len=ints(2),
        write_from=ints(0),
        logit_idx=ints(0),
        logit_start=ints(0, 1),
        logit_target=ints(-1),
        page_edits=np.array([[3, 0, 9], [3, 1, 8]], np.int32),
        packs=StepPacks(ints(0, 1), ints(4)),
        openings=(opening,),
    )


def test_calls_arrive_in_their_order(pair: Pair):
    for step_id in range(20):
        masks = GivenMasks() if step_id % 3 == 0 else None
        pair.leader.dispatch(plan(step_id), masks).wait()
    change = pair.leader.prepare(UpdateWeights(model_path="/new"))
    pair.leader.dispatch(plan(20)).wait()
    assert change() == DONE
    pair.leader.reset()
    pair.leader.dispatch(plan(21), GivenMasks()).wait()
    pair.close()
    assert len(pair.here.calls) == 24
    assert pair.there.calls == pair.here.calls
    assert b"4294967295" in pair.there.calls[-1][1] and b"4294967295" not in pair.there.calls[1][1]
    assert pair.world.losses == []


@pytest.mark.parametrize("who", ["here", "there"])
def test_what_one_refuses_is_done_by_none(pair: Pair, who: str):
    getattr(pair, who).refuses = "no such file"
    with pytest.raises(OperationRefused, match="no such file"):
        pair.leader.prepare(UpdateWeights(model_path="/new"))
    getattr(pair, who).refuses = None
    assert pair.leader.prepare(UpdateWeights(model_path="/other"))() == DONE
    pair.close()
    assert pair.here.calls == pair.there.calls == [("change", b"/other")]
    assert pair.world.losses == []


def test_an_operation_may_fail_everywhere(pair: Pair):
    pair.here.fails = pair.there.fails = True
    change = pair.leader.prepare(UpdateWeights(model_path="/new"))
    with pytest.raises(OperationFailed):
        change()
    assert pair.world.losses == []


@pytest.mark.parametrize("who", ["here", "there"])
def test_an_operation_that_ends_in_two_ways_ends_the_world(pair: Pair, who: str):
    getattr(pair, who).fails = True
    change = pair.leader.prepare(UpdateWeights(model_path="/new"))
    with pytest.raises(WorldLost, match="ended as"):
        change()
    assert len(pair.world.losses) == 1


def test_a_failed_step_of_the_leader_ends_the_world(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxsgl.world.leader_runner._BLAME_WAIT_S", 0.01)
    pair.here.broken = RuntimeError("out of\nmemory")
    step = pair.leader.dispatch(plan(0))
    with pytest.raises(WorldLost, match="a step failed: RuntimeError: out of memory"):
        step.wait()
    assert [loss.by_itself for loss in pair.world.losses] == [True]


def test_a_failed_step_of_a_follower_ends_the_world(pair: Pair):
    pair.there.broken = RuntimeError("out of memory")
    pair.leader.dispatch(plan(0)).wait()
    pair.leader.dispatch(plan(1))
    pair.world.wait_for_loss()
    assert [str(loss) for loss in pair.world.losses] == ["rank 1: out of memory"]
    with pytest.raises(WorldLost):
        pair.leader.reset()


def test_a_step_that_fails_because_a_follower_is_gone_is_not_blamed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxsgl.world.leader_runner._BLAME_WAIT_S", 60)
    pair.here.broken = RuntimeError("connection closed by peer")
    step = pair.leader.dispatch(plan(0))
    threading.Timer(0.1, pair.world.members.lose, ["it is gone"], {"by_itself": False}).start()
    with pytest.raises(WorldLost, match="it is gone"):
        step.wait()
    pair.world.wait_for_loss()
    assert [loss.by_itself for loss in pair.world.losses] == [False]
