"""One replica in this process and event loop; requests beyond its queue wait."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, Self

from jaxsgl.actors.messages import Progress
from jaxsgl.actors.text_actor import PromptTokenizer, TextActor
from jaxsgl.config import EngineConfig
from jaxsgl.interface import (
    Delta,
    EngineOperation,
    EngineStats,
    Finish,
    GenerateRequest,
    GrammarReport,
    GrammarSpec,
    InvalidRequest,
    ModelInfo,
    OperationReport,
    Prompt,
    ReplicaReport,
    Unavailable,
    Usage,
)
from jaxsgl.offline.gate import Gate
from jaxsgl.replicas.launch import LocalLaunch
from jaxsgl.replicas.pool import ReplicaPool
from jaxsgl.replicas.replica_host import ReplicaEndpoint, Send
from jaxsgl.replicas.seat import ReplicaSpec

_TEXT_STOP_TIMEOUT_S = 5.0


class LocalReplica(ReplicaEndpoint, Protocol):
    """What a replica tells whoever shares its event loop, beyond what it sends."""

    def step_trace(self) -> dict[str, Any]:
        """The last steps as a Chrome trace."""
        ...


type LocalFactory = Callable[[EngineConfig, Send], Awaitable[LocalReplica]]
"""A `replica_host.Factory` of such replicas."""


class LocalEngine:
    """An `interface.EngineClient` that is never too busy. Get one from `open`.

    At most `max_queued_requests` requests are with the replica at a time; the others wait their
    turn here, unencoded.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: PromptTokenizer,
        factory: LocalFactory,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._factory = factory
        self._replica: LocalReplica | None = None
        self._text = TextActor(tokenizer)
        self._pool = ReplicaPool(
            config,
            self._text,
            [ReplicaSpec(lambda epoch: LocalLaunch(epoch, config, factory=self._build))],
            max_unhealthy=1,
            on_progress=on_progress,
        )
        # Fewer than the pool takes: those that have finished count there until the last step that
        # mentions them is over.
        self._gate = Gate(max(1, config.max_queued_requests))
        self._aborted: dict[str, bool] = {}
        """By id of each request that is not over: whether it was aborted."""

    @classmethod
    async def open(
        cls,
        config: EngineConfig,
        tokenizer: PromptTokenizer,
        factory: LocalFactory,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Self:
        """Returns when the replica is ready. Raises StartError, one line, if it cannot be; nothing
        is left of it then."""
        engine = cls(config, tokenizer, factory, on_progress)
        try:
            await engine._text.start()
            await engine._pool.start()
        except BaseException:
            await engine.stop()
            raise
        return engine

    async def stop(self) -> None:
        """End at once what still runs. Idempotent; nothing is left."""
        await self._pool.stop()
        await self._text.stop(_TEXT_STOP_TIMEOUT_S)

    async def _build(self, config: EngineConfig, send: Send) -> LocalReplica:
        self._replica = await self._factory(config, send)
        return self._replica

    # What an EngineClient is asked.

    @property
    def model(self) -> ModelInfo:
        return self._pool.model

    @property
    def ready(self) -> bool:
        return self._pool.ready

    @property
    def alive(self) -> bool:
        return self._pool.alive

    def token_bytes(self, token_id: int) -> bytes:
        return self._pool.token_bytes(token_id)

    def stats(self) -> EngineStats:
        """As of now."""
        return self._up().stats()

    @property
    def num_devices(self) -> int:
        return self._pool.num_devices

    def replicas(self) -> list[ReplicaReport]:
        return self._pool.replicas()

    def drain_replica(self, replica_id: int) -> None:
        self._pool.drain_replica(replica_id)

    def restart_replica(self, replica_id: int) -> None:
        self._pool.restart_replica(replica_id)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        request_id = request.request_id
        if request_id in self._aborted:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")
        self._aborted[request_id] = False
        try:
            if not await self._gate.enter(request_id):
                finish = Finish("abort", message="aborted by request")
                yield Delta("", [], Usage(0, 0, 0), finish)
                return
            try:
                async with aclosing(self._pool.generate(request)) as deltas:
                    async for delta in deltas:
                        if self._aborted[request_id]:  # perhaps while it was being encoded
                            self._pool.abort(request_id)
                        yield delta
            finally:
                self._gate.leave()
        finally:
            del self._aborted[request_id]

    # What only its owner asks.

    async def encode(self, prompt: Prompt) -> list[int]:
        """Raises InvalidRequest."""
        return await self._text.encode(prompt)

    def abort(self, request_id: str) -> None:
        """End a request, and what is held for it; its reader still gets a last delta. Idempotent,
        for any id."""
        if request_id in self._aborted:
            self._aborted[request_id] = True
            self._gate.call_off(request_id)
            self._pool.abort(request_id)
        self.let_go(request_id)

    def let_go(self, request_id: str) -> None:
        """End what is held for a request. Idempotent, for any id."""
        self._pool.let_go(request_id)

    def abort_all(self) -> None:
        for request_id in list(self._aborted):
            self.abort(request_id)
        self._pool.abort_all()

    async def flush_cache(self) -> None:
        """Forget every cached prefix. Raises Busy while a request runs or waits."""
        await self._pool.flush_cache()

    async def check_grammar(self, grammar: GrammarSpec, prefix: bytes) -> GrammarReport:
        """Raises InvalidGrammar."""
        return await self._pool.check_grammar(grammar, prefix)

    async def operate(self, operation: EngineOperation) -> OperationReport:
        """Raises OperationRefused or OperationFailed."""
        return await self._pool.operate(operation)

    def step_trace(self) -> dict[str, Any]:
        """The last steps as a Chrome trace."""
        return self._up().step_trace()

    def _up(self) -> LocalReplica:
        if self._replica is None:
            raise Unavailable("the replica is not ready")
        return self._replica
