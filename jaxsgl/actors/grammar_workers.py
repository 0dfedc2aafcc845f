"""Processes that compile grammars, and that are killed if one takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process

import msgspec

from jaxsgl.grammar import worker
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.interface import GrammarSpec

NUM_WORKERS = 2
MAX_WORKER_BYTES = 1 << 30
"""Address space of a worker. About 150 MiB of it are libraries."""
START_TIMEOUT_S = 60.0

_REPLIES = msgspec.msgpack.Decoder(worker.Compiled | worker.Refused)


class WorkersBroken(Exception):
    """A worker cannot be started."""


class GrammarWorkers:
    """Compiles up to NUM_WORKERS grammars at a time; further ones wait their turn.

    A worker is started when it is first needed and kept. Construct it in a running loop.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(NUM_WORKERS)
        self._idle: list[Process] = []

    async def compile(self, spec: GrammarSpec) -> bytes:
        """The grammar's tables, encoded.

        Raises GrammarError, also if it takes more time or memory than it may. Cancelled, it kills
        what compiles.
        """
        data = msgspec.msgpack.encode(spec)
        async with self._turns:
            process = self._idle.pop() if self._idle else await _start(self._timeout_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = await _ask(process, data)
            except TimeoutError:
                await _kill(process)
                message = f"compiling the grammar takes more than {self._timeout_s:g} s"
                raise GrammarError(message) from None
            except (EOFError, OSError):
                await _kill(process)
                raise GrammarError("compiling the grammar takes too much memory") from None
            except BaseException:
                await _kill(process)
                raise
            self._idle.append(process)
        if isinstance(reply, worker.Refused):
            raise GrammarError(reply.message, reply.line)
        return reply.tables

    async def stop(self) -> None:
        """End the workers. Nothing may be compiling."""
        while self._idle:
            await _kill(self._idle.pop())


async def _start(timeout_s: float) -> Process:
    command = (sys.executable, "-m", worker.__name__, str(timeout_s), str(MAX_WORKER_BYTES))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await _read(process)
    except (TimeoutError, EOFError) as error:
        await _kill(process)
        raise WorkersBroken("a process that compiles grammars cannot be started") from error
    except BaseException:
        await _kill(process)
        raise
    return process


async def _ask(process: Process, data: bytes) -> worker.Compiled | worker.Refused:
    assert process.stdin is not None
    process.stdin.write(len(data).to_bytes(4, "little") + data)
    await process.stdin.drain()
    return _REPLIES.decode(await _read(process))


async def _read(process: Process) -> bytes:
    """A frame. Raises EOFError."""
    assert process.stdout is not None
    head = await process.stdout.readexactly(4)
    return await process.stdout.readexactly(int.from_bytes(head, "little"))


async def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
