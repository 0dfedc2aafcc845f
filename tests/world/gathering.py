"""Leaders and followers that meet in one process, without jax."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxsgl.config import EngineConfig
from jaxsgl.interface import (
    EngineOperation,
    OperationFailed,
    OperationRefused,
    OperationReport,
    UpdateWeights,
)
from jaxsgl.step import Change, MaskRows, StepLimits, StepMasks, StepPlan, StepResult
from jaxsgl.world.errors import WorldLost
from jaxsgl.world.follower import join
from jaxsgl.world.members import Members
from jaxsgl.world.orders import Order, Stop, Welcome
from jaxsgl.world.wire import Wire
from tests.fake_runner import make_limits

KEY = "a secret of more than 16 characters"
DONE = OperationReport(weight_version="1", released=())


def world_config(folder: Path, nnodes: int = 2, node_rank: int = 0, **settings) -> EngineConfig:
    key = folder / "key"
    key.write_text(KEY + "\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"127.0.0.1:{port}"
    return EngineConfig(
        nnodes=nnodes,
        node_rank=node_rank,
        dist_init_addr=address,
        world_key_file=str(key),
        **settings,
    )


@dataclass
class Gathered:
    members: Members
    wires: list[Wire[Order]]
    """Of ranks 1, 2, …"""
    coordinators: set[str]
    """What each was told."""
    losses: list[WorldLost]
    lost: threading.Event

    def wait_for_loss(self) -> WorldLost:
        """The first. Members know of it a moment before they tell."""
        assert self.lost.wait(60)
        return self.losses[0]

    def close(self) -> None:
        self.members.stop(Stop())
        for wire in self.wires:
            wire.close()


def gathered(config: EngineConfig, followers: list[EngineConfig]) -> Gathered:
    """A leader and its followers, all of them in."""
    losses: list[WorldLost] = []
    lost = threading.Event()

    def on_lost(loss: WorldLost) -> None:
        losses.append(loss)
        lost.set()

    members = Members(config, on_lost)
    with ThreadPoolExecutor(1 + len(followers)) as threads:
        leading = threads.submit(members.gather)
        joining: list[Future[tuple[Wire[Order], Welcome]]] = []
        joining += [threads.submit(join, follower) for follower in followers]
        joined = [each.result() for each in joining]
        coordinators = {leading.result(), *(welcome.coordinator for _, welcome in joined)}
    return Gathered(members, [wire for wire, _ in joined], coordinators, losses, lost)


class _Done:
    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def wait(self) -> StepResult:
        if self._error is not None:
            raise self._error
        nothing = np.zeros(0, np.int32)
        return StepResult(0, nothing, nothing == 0)


@dataclass
class Recorder:
    """A runner that only remembers what it was told."""

    calls: list[tuple[str, bytes]] = field(default_factory=list)
    limits: StepLimits = field(default_factory=make_limits)
    recompiles: int = 0
    refuses: str | None = None
    fails: bool = False
    """Of operations that are carried out."""
    broken: Exception | None = None
    """What steps end with."""

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> _Done:
        arrays = [plan.slot, plan.token_ids, plan.page_edits]
        if masks is not None:
            words = np.zeros((4, 2), np.uint32)
            rows = masks.fill(words, lambda: True)
            arrays += [words, rows.mask_row, rows.skipped]
        told = [plan.step_id, plan.mode, [array.tolist() for array in arrays]]
        self.calls.append(("step", repr(told).encode()))
        return _Done(self.broken)

    def prepare(self, operation: EngineOperation) -> Change:
        if self.refuses is not None:
            raise OperationRefused(self.refuses)
        assert isinstance(operation, UpdateWeights)

        def change() -> OperationReport:
            self.calls.append(("change", operation.model_path.encode()))
            if self.fails:
                raise OperationFailed("no")
            return DONE

        return change

    def reset(self) -> None:
        self.calls.append(("reset", b""))


class GivenMasks:
    def fill(self, masks: NDArray[np.uint32], is_due: Callable[[], bool]) -> MaskRows:
        masks[:2] = [[1, 2], [3, 2**32 - 1]]
        return MaskRows(np.array([1, -1, 0], np.int32), np.array([False, True, False]))
