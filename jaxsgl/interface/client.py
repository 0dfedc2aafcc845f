"""An engine as those who use it see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from jaxsgl.interface.answers import Delta
from jaxsgl.interface.grammars import GrammarReport, GrammarSpec
from jaxsgl.interface.operations import EngineOperation, OperationReport, PauseMode
from jaxsgl.interface.reports import EngineStats, ModelInfo, ReplicaReport
from jaxsgl.interface.requests import GenerateRequest, Prompt


class EngineClient(Protocol):
    """What a front end needs of an engine."""

    @property
    def model(self) -> ModelInfo: ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield deltas until one carries `finish`.

        Raises an `EngineError` before the first delta if the request is refused, and after some
        deltas if the engine ends, or the request's time does, before the answer. Closing the
        generator (or cancelling the task in it) aborts the request; its pages come back within a
        step.
        """
        ...

    def let_go(self, request_id: str) -> None:
        """End what is held for the request of this id, or for those whose id is this, a hyphen and
        more. Idempotent, for any id. A request that its reader left before the end holds
        nothing."""
        ...

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` would make of a prompt. Raises as that does."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be admitted."""
        ...

    @property
    def alive(self) -> bool:
        """Whether every part of the engine has shown a sign of life lately; false is beyond
        repair."""
        ...

    async def flush_cache(self) -> None:
        """Forget every cached prefix. Raises Busy while a request runs or waits; after
        `pause("retract")` requests may wait."""
        ...

    async def check_grammar(self, grammar: GrammarSpec, prefix: bytes) -> GrammarReport:
        """Compile a grammar and follow a prefix. Raises InvalidRequest."""
        ...

    async def operate(self, operation: EngineOperation) -> OperationReport:
        """Change what is on the devices, as soon as the steps on their way are through.

        Raises OperationRefused or OperationFailed, either of which leaves everything serving as it
        was, and Unavailable if the engine is not ready."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, for showing log-probabilities; not always whole UTF-8."""
        ...

    def stats(self) -> EngineStats:
        """The latest report of the replicas, summed. Counters also count those that are gone."""
        ...

    @property
    def num_devices(self) -> int:
        """Devices of the replicas that take requests now."""
        ...

    def replicas(self) -> list[ReplicaReport]:
        """How each replica is doing, by id."""
        ...

    def drain_replica(self, replica_id: int) -> None:
        """Send it nothing new, let its requests end or move, and stop it. Returns at once;
        `replicas` tells how far it is. Raises UnknownReplica."""
        ...

    def restart_replica(self, replica_id: int) -> None:
        """The same, and then start it again. Also starts one that is stopped or has failed."""
        ...


class ServedEngine(EngineClient, Protocol):
    """What a server needs beyond that."""

    def abort(self, request_id: str) -> None:
        """End the request of this id, or those whose id is this, a hyphen and more, and what is
        held for them: readers still get a last delta. Idempotent, for any id."""
        ...

    def abort_all(self) -> None:
        """End every request, and every hold, in the same way."""
        ...

    async def pause(self, mode: PauseMode) -> None:
        """Compute nothing more until `resume`. Returns when no step runs. Requests are still
        accepted, and wait. Draining, and a replica that starts again, resume."""
        ...

    async def resume(self) -> None:
        """The end of `pause`. Idempotent."""
        ...

    async def start_profile(self, folder: str, duration_s: float) -> None:
        """Write what the devices do to `folder`, until `stop_profile` or for `duration_s`. Raises
        Busy while a profile is being taken."""
        ...

    async def stop_profile(self) -> None:
        """Returns when the profile is written. Raises Busy if none is being taken."""
        ...

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids. Raises InvalidRequest for ids that are none."""
        ...
