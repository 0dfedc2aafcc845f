"""A machine of rank 1 or more: keeps a follower running, one life after another, as long as the
leader has use for it. Imports no jax."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import msgspec

from jaxsgl.config import EngineConfig
from jaxsgl.logs import LogSettings
from jaxsgl.replicas.frames import Start
from jaxsgl.replicas.replica_host import Outcome

log = logging.getLogger(__name__)

FOLLOWER_COMMAND = (sys.executable, "-m", "jaxsgl.world.follower_process")
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 8.0


async def keep_following(
    config: EngineConfig,
    log_settings: LogSettings,
    environment: Mapping[str, str],
    command: Sequence[str] = FOLLOWER_COMMAND,
) -> None:
    """Run followers until cancelled, or until the first cannot start, which has said why."""
    epoch, delay_s = 0, _FIRST_DELAY_S
    while True:
        outcome = await _one_life(Start(epoch, config, log_settings), environment, command)
        if outcome == Outcome.START_FAILED and epoch == 0:
            return
        # In order, or because others went first: they are looking for this one already.
        is_called = outcome in (Outcome.ORDERED, Outcome.ORPHANED)
        delay_s = _FIRST_DELAY_S if is_called else min(_MAX_DELAY_S, 2 * delay_s)
        log.info("the follower ended (%d); another one starts in %g s", outcome, delay_s)
        await asyncio.sleep(delay_s)
        epoch += 1


async def _one_life(start: Start, environment: Mapping[str, str], command: Sequence[str]) -> int:
    """The exit code of a follower, of which nothing is left then."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, env=environment, process_group=0
    )
    exited = asyncio.create_task(process.wait())
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(start) + b"\n")
        process.stdin.close()
        await asyncio.wait({exited})
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait({exited})
    return exited.result()
