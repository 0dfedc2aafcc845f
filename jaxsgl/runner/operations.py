"""Operations on a runner: see `interface.EngineOperation` and `step.Runner.prepare`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from jaxsgl.interface import (
    EngineOperation,
    OperationRefused,
    OperationReport,
    ReleaseMemory,
    Reshard,
    ResumeMemory,
    UpdateWeights,
)
from jaxsgl.runner.device_memory import COMPILING, DeviceMemory, can_move
from jaxsgl.runner.mesh import mesh_text
from jaxsgl.runner.part_times import PartTimes
from jaxsgl.runner.programs import Programs, Weights
from jaxsgl.step import Change

log = logging.getLogger(__name__)

WeightSource = Callable[[UpdateWeights], Callable[[], Weights]]
"""Opens and checks other weights, and returns what loads them. Raises OperationRefused."""


class Spread(NamedTuple):
    """A model on a mesh, but for its weights."""

    programs: Programs
    source: WeightSource
    """Where other weights come from."""
    is_compiled: bool
    """Whether the programs are; if not, they need the memory of the pages for it."""


Respread = Callable[[Reshard], Spread]
"""Makes what a model needs that is spread otherwise. Raises OperationRefused."""


def no_other_spread(_: Reshard) -> Spread:
    """Implements Respread for a runner that stays where it is."""
    raise OperationRefused("this model cannot be spread otherwise")


class RunnerOperations:
    """Carries operations out on one runner's memory."""

    def __init__(
        self,
        memory: DeviceMemory,
        source: WeightSource,
        respread: Respread,
        on_respread: Callable[[], None],
    ) -> None:
        """`on_respread` is called once other programs are to be used."""
        self._memory = memory
        self._source = source
        self._respread = respread
        self._on_respread = on_respread
        self._spread = Reshard()
        """How the model is spread, as far as that is not as configured."""
        self._weight_version = "default"
        self._num_updates = 0

    def prepare(self, operation: EngineOperation) -> Change:
        match operation:
            case UpdateWeights():
                load = self._source(operation)
                return lambda: self._update(load, operation.weight_version)
            case ReleaseMemory(parts=parts):
                return lambda: self._report(self._memory.release(parts))
            case ResumeMemory(parts=parts):
                return lambda: self._report(self._memory.resume(parts))
            case Reshard():
                wanted = self._with_the_rest(operation)
                spread = self._respread(wanted)
                if not can_move(self._memory.programs, spread.programs):
                    raise OperationRefused(
                        "quantised weights cannot be moved there; start the server so instead"
                    )
                return lambda: self._reshard(wanted, spread)

    def _update(self, load: Callable[[], Weights], version: str | None) -> OperationReport:
        self._memory.replace_weights(load)
        self._num_updates += 1
        self._weight_version = str(self._num_updates) if version is None else version
        return self._report()

    def _with_the_rest(self, operation: Reshard) -> Reshard:
        """What it leaves as it is, named."""
        rules = operation.sharding_rules
        return Reshard(
            mesh=self._spread.mesh if operation.mesh is None else operation.mesh,
            sharding_rules=self._spread.sharding_rules if rules is None else rules,
        )

    def _reshard(self, wanted: Reshard, spread: Spread) -> OperationReport:
        times = PartTimes()
        self._memory.respread(spread.programs, times, compile_first=not spread.is_compiled)
        self._source = spread.source
        self._spread = wanted
        self._on_respread()
        times.ended("running every program once")
        report = msgspec.structs.replace(self._report(), compiled_s=times.of(COMPILING))
        log.info("the model is on %s now: %s", report.mesh, times)
        return report

    def _report(self, _done: None = None) -> OperationReport:
        layout = self._memory.programs.layout
        return OperationReport(
            weight_version=self._weight_version,
            released=self._memory.released,
            mesh=mesh_text(layout.mesh),
            notes=layout.notes,
        )
