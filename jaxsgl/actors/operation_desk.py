"""Operations on a runner, one after another: prepared beside the steps, carried out between two."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from jaxsgl.actors.messages import Operated, ToFront
from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.interface import (
    EngineOperation,
    MemoryPart,
    OperationFailed,
    OperationRefused,
)
from jaxsgl.scheduling.outputs import RowOutput
from jaxsgl.step import Change

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OperationPrepared:
    """The rest of an operation waits for a moment without steps."""

    ask_id: int
    change: Change


class OperationDesk:
    """Takes orders, and answers each with Operated.

    While `is_due` the owner is to dispatch no more steps, and to call `carry_out` when none is on
    its way; while `paused` there is no device memory for steps.
    """

    def __init__(
        self,
        runner: RunnerActor,
        send: Callable[[ToFront], None],
        on_prepared: Callable[[OperationPrepared], None],
        clock: Callable[[], float],
    ) -> None:
        """`on_prepared` is to bring its argument to `prepared` in the owner's own time."""
        self._runner = runner
        self._send = send
        self._on_prepared = on_prepared
        self._clock = clock
        self._waiting: deque[tuple[int, EngineOperation]] = deque()
        self._preparing: asyncio.Task[None] | None = None
        self._due: OperationPrepared | None = None
        self._released: tuple[MemoryPart, ...] = ()
        self._weight_version = "default"

    @property
    def is_due(self) -> bool:
        return self._due is not None

    @property
    def paused(self) -> bool:
        return bool(self._released)

    def take(self, ask_id: int, operation: EngineOperation) -> None:
        self._waiting.append((ask_id, operation))
        self._prepare_next()

    def prepared(self, operation: OperationPrepared) -> None:
        self._due = operation

    def signed(self, row: RowOutput) -> RowOutput:
        """A last row says which weights drew it."""
        if row.finish is None:
            return row
        return msgspec.structs.replace(row, weight_version=self._weight_version)

    async def carry_out(self) -> bool:
        """What is due, and answer it. Whether the KV cache was emptied.

        Raises what the runner raises when it cannot be used any more.
        """
        assert self._due is not None
        ask_id, change = self._due.ask_id, self._due.change
        begin_s = self._clock()
        try:
            report = await self._runner.change(change)
        except OperationRefused as error:
            self._send(Operated(ask_id, error=error.message, refused=True))
            return False
        except OperationFailed as error:
            log.error("an operation failed: %s", error.message)
            self._send(Operated(ask_id, error=error.message))
            return True
        finally:
            self._due = None
            self._preparing = None
            self._prepare_next()
        self._released = report.released
        self._weight_version = report.weight_version
        paused_s = self._clock() - begin_s
        self._send(Operated(ask_id, msgspec.structs.replace(report, paused_s=paused_s)))
        return True

    async def stop(self) -> None:
        """What was not carried out stays unanswered: the replica ends."""
        self._waiting.clear()
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait({self._preparing})

    def _prepare_next(self) -> None:
        if self._preparing is None and self._waiting:
            self._preparing = asyncio.create_task(self._prepare(*self._waiting.popleft()))

    async def _prepare(self, ask_id: int, operation: EngineOperation) -> None:
        try:
            change = await self._runner.prepare(operation)
        except Exception as error:
            refused = isinstance(error, OperationRefused)
            if not refused:
                log.error("an operation could not be prepared", exc_info=error)
            self._send(Operated(ask_id, error=str(error) or type(error).__name__, refused=refused))
            self._preparing = None
            self._prepare_next()
            return
        self._on_prepared(OperationPrepared(ask_id, change))
