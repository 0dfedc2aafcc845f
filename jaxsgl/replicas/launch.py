"""Where a replica lives: in a process of its own, or in this event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxsgl.actors.messages import ToFront, ToReplica
from jaxsgl.config import EngineConfig
from jaxsgl.logs import LogSettings
from jaxsgl.replicas.door import Door
from jaxsgl.replicas.frames import FromFront, Start
from jaxsgl.replicas.link import Link, MemoryLink, Receiver, memory_pair
from jaxsgl.replicas.replica_host import Factory, Outcome, ReplicaHost

REPLICA_COMMAND = (sys.executable, "-m", "jaxsgl.replicas.replica_process")

_CONNECT_TIMEOUT_S = 120.0
"""From the start of the process to its Hello: a cold import of everything, on a busy machine."""
_EXIT_GRACE_S = 5.0
"""What a process gets to exit after closing its link."""


class StartError(Exception):
    """One line: why a replica could not be started."""


@dataclass(frozen=True, slots=True)
class Ending:
    how: str | None
    """For a person; None if it was in order."""
    by_itself: bool = False
    """Whether what it computed may have brought it down: it crashed, or gave up. A signal to end
    comes from outside."""


class Launch(Protocol):
    """One life of one replica."""

    async def open(self, receiver: Receiver[ToFront]) -> Link[ToReplica]:
        """Start it and order the replica built. Raises StartError.

        `close` must be called in the end, also if this raised or was cancelled.
        """
        ...

    async def wait_for_end(self) -> Ending:
        """Returns when the replica has ended."""
        ...

    async def close(self) -> None:
        """End what is left of it, at once. Idempotent; nothing remains."""
        ...


type Launcher = Callable[[int], Launch]
"""Prepares the launch of a given epoch: 0, and one more for each restart. An epoch has a door and a
link of its own, so that nothing a former one still says can be heard."""


class ProcessLaunch:
    """A replica in a child process, at the head of a process group of its own."""

    def __init__(
        self,
        epoch: int,
        config: EngineConfig,
        *,
        log: LogSettings | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = REPLICA_COMMAND,
    ) -> None:
        """`log` is what the child prints. `environment` is all the child sees; None is what this
        process sees. The address of the door is appended to `command`."""
        self._start = Start(epoch, config, log or LogSettings())
        self._environment = environment
        self._command = command
        self._door: Door | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._exited: asyncio.Task[int] | None = None

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def open(self, receiver: Receiver[ToFront]) -> Link[ToReplica]:
        door = self._door = Door(receiver)
        await door.listen()
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command,
                door.address,
                stdin=asyncio.subprocess.PIPE,
                env=self._environment,
                process_group=0,
            )
        except OSError as error:
            raise StartError(f"the replica process cannot be started: {error}") from error
        exited = self._exited = asyncio.create_task(process.wait())
        assert process.stdin is not None
        process.stdin.write(door.token.encode() + b"\n")
        process.stdin.close()
        await asyncio.wait(
            {door.opened, exited},
            timeout=_CONNECT_TIMEOUT_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not door.opened.done():
            how = ending_of(exited.result()).how if exited.done() else "did not connect"
            raise StartError(f"the replica process {how or 'ended'}")
        link: Link[FromFront] = door.opened.result()
        door.close()
        link.send(self._start)
        return link

    async def wait_for_end(self) -> Ending:
        assert self._door is not None and self._exited is not None
        link = self._door.opened.result()
        await asyncio.wait({self._exited, link.closed}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({self._exited}, timeout=_EXIT_GRACE_S)
        return (
            ending_of(self._exited.result()) if self._exited.done() else Ending("closed its link")
        )

    async def close(self) -> None:
        if self._door is not None:
            self._door.close()
        if self._process is not None and self._exited is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await asyncio.wait({self._exited})


_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ending_of(exit_code: int) -> Ending:
    """How a replica process ended that exited so; a signal that killed it is below 0."""
    if exit_code == Outcome.ORDERED:
        return Ending(None)
    if exit_code < 0:
        number = signal.Signals(-exit_code)
        return Ending(f"was killed by {number.name}", by_itself=number not in _FROM_OUTSIDE)
    from_outside = exit_code in (Outcome.ORPHANED, Outcome.WORLD_LOST)
    return Ending(f"exited with code {exit_code}", by_itself=not from_outside)


class LocalLaunch:
    """A replica in this process and event loop."""

    def __init__(self, epoch: int, config: EngineConfig, *, factory: Factory) -> None:
        self._config = config
        self._factory = factory
        self._running: asyncio.Task[Outcome] | None = None

    async def open(self, receiver: Receiver[ToFront]) -> Link[ToReplica]:
        host = ReplicaHost(self._factory)
        front: MemoryLink[ToFront, ToReplica]
        front, back = memory_pair(receiver, host)
        self._running = asyncio.create_task(host.run(self._config, back.send), name="replica")
        self._running.add_done_callback(lambda _: back.close())
        return front

    async def wait_for_end(self) -> Ending:
        assert self._running is not None
        await asyncio.wait({self._running})
        if self._running.cancelled():
            return Ending("was cancelled")
        if self._running.result() is Outcome.ORDERED:
            return Ending(None)
        return Ending("failed", by_itself=True)

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
