"""The leader's view of its world: it gathers it, and lives as long as all of it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from jaxsgl.config import EngineConfig
from jaxsgl.runner.processes import join_processes
from jaxsgl.world.errors import WorldLost
from jaxsgl.world.members import Members
from jaxsgl.world.orders import Stop


class World:
    """Construct it in a running loop."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[WorldLost] = self._loop.create_future()
        self.members = Members(config, self._on_lost)

    @property
    def is_lost(self) -> bool:
        return self.members.is_lost

    def gather(self) -> None:
        """Wait until all processes are there, and make one jax of them. Nothing of jax may have run
        before. Raises ConfigError and WorldLost."""
        coordinator = self.members.gather()
        join_processes(coordinator, self._config.nnodes, self._config.node_rank)

    async def alive[T](self, awaitable: Awaitable[T]) -> T:
        """What is awaited. Raises WorldLost as soon as the world is, whatever then becomes of
        that."""
        task = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({task, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                raise self._lost.result()
            return task.result()
        finally:
            task.cancel()

    def stop(self) -> None:
        """Have the others end in order."""
        self.members.stop(Stop())

    def _on_lost(self, loss: WorldLost) -> None:
        self._loop.call_soon_threadsafe(self._lost.set_result, loss)
