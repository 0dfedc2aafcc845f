"""What all replicas have been told since they started, and what one that starts later must hear."""

from __future__ import annotations

import asyncio
import logging
import math

import msgspec

from jaxsgl.interface import (
    EngineOperation,
    ModelInfo,
    OperationReport,
    PauseMode,
    ReleaseMemory,
    Reshard,
    UpdateWeights,
)
from jaxsgl.replicas.seat import Order, Seat
from jaxsgl.replicas.seats import Seats, proxy_of

log = logging.getLogger(__name__)


class CommonState:
    """Weights, mesh, released memory and pauses: alike in every replica that is up."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.is_paused = False
        self._weights: UpdateWeights | None = None
        self._spread: Reshard | None = None
        """Those in use, if they are not the ones that replicas start with."""
        self._report: OperationReport | None = None
        """How the replicas are since the last operation."""

    async def operate(self, operation: EngineOperation) -> OperationReport:
        """Raises OperationRefused or OperationFailed.

        The first replica shows whether it can be done. One that cannot do what that did is started
        again, and made to follow like every one that starts later.
        """
        first, *others = self._seats.up()
        report = await proxy_of(first).operate(operation)
        if isinstance(operation, UpdateWeights):
            version = report.weight_version
            self._weights = msgspec.structs.replace(operation, weight_version=version)
        if isinstance(operation, Reshard):
            rules = operation.sharding_rules
            before = self._spread or Reshard()
            self._spread = Reshard(
                mesh=before.mesh if operation.mesh is None else operation.mesh,
                sharding_rules=before.sharding_rules if rules is None else rules,
            )
        self._report = report
        results = await asyncio.gather(
            *(proxy_of(seat).operate(operation) for seat in others), return_exceptions=True
        )
        for seat, result in zip(others, results, strict=True):
            if isinstance(result, BaseException):
                log.error("%s could not follow: %s", seat.name, result)
                seat.order(Order.RESTART)
        return report

    async def pause(self, mode: PauseMode) -> None:
        """Returns when no step runs anywhere."""
        self.is_paused = True
        await asyncio.gather(*(proxy.pause(mode) for proxy in self._seats.up_proxies()))

    async def resume(self) -> None:
        self.is_paused = False
        await asyncio.gather(*(proxy.resume() for proxy in self._seats.up_proxies()))

    async def bring_to(self, seat: Seat) -> None:
        """Have a replica that has started do what the others have done since their start."""
        proxy = proxy_of(seat)
        if self._weights is not None:
            await proxy.operate(self._weights)
        if self._spread is not None:
            await proxy.operate(self._spread)
        if self._report is not None and self._report.released:
            await proxy.operate(ReleaseMemory(parts=self._report.released))
        if self.is_paused:
            await proxy.pause("in_place")

    def described(self, model: ModelInfo) -> ModelInfo:
        """What a replica said of its model when it started, as it is now."""
        if self._report is None:
            return model
        model = msgspec.structs.replace(model, weight_version=self._report.weight_version)
        if self._spread is None:
            return model
        mesh = self._report.mesh
        sizes = [int(axis.partition("=")[2]) for axis in mesh.split(",")]
        return msgspec.structs.replace(model, mesh=mesh, num_devices=math.prod(sizes))
