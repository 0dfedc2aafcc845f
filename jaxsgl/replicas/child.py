"""The life of a replica process, from its first line to its exit code."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from jaxsgl.actors.messages import Stop
from jaxsgl.logs import set_up_logging
from jaxsgl.replicas.door import ReplicaLink, enter
from jaxsgl.replicas.frames import FromFront, Start
from jaxsgl.replicas.replica_host import Factory, Outcome, ReplicaHost

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_ORPHAN_GRACE_S = 3.0
"""What an orphan gets to end by itself."""
_FLUSH_TIMEOUT_S = 2.0


def run_replica(address: str, factory: Factory) -> NoReturn:
    """Serve the front behind `address` until told to stop or the front is gone, then exit with
    an Outcome.

    The token of the door is the first line of standard input, where no other process can read it.
    SIGTERM ends the replica in order. SIGINT is ignored: a terminal sends it to all, and the front
    decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    token = sys.stdin.readline().strip()
    outcome = asyncio.Runner().run(_live(address, token, factory))
    # Nothing of value is left: taking the interpreter and its threads apart would only take time.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(outcome)


async def _live(address: str, token: str, factory: Factory) -> Outcome:
    child = _Child(factory)
    try:
        link = await enter(address, token, child)
    except OSError:
        return Outcome.ORPHANED
    _exit_when_orphaned(link)
    start = await child.start
    if start is None:
        return Outcome.ORPHANED
    set_up_logging(start.log)
    log.info("building the replica, epoch %d", start.epoch)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, child.host.on_message, Stop())
    outcome = await asyncio.create_task(child.host.run(start.config, link.send), name="replica")
    link.close()
    await asyncio.wait({link.closed}, timeout=_FLUSH_TIMEOUT_S)
    return outcome


class _Child:
    """Receiver of the front's messages. `start` brings the first one, or None if there is none."""

    def __init__(self, factory: Factory) -> None:
        self.host = ReplicaHost(factory)
        self.start: asyncio.Future[Start | None] = asyncio.get_running_loop().create_future()

    def on_message(self, message: FromFront) -> None:
        if not isinstance(message, Start):
            self.host.on_message(message)
        elif not self.start.done():
            self.start.set_result(message)

    def on_closed(self, cause: Exception | None) -> None:
        self.host.on_closed(cause)
        if not self.start.done():
            self.start.set_result(None)


def die_with_parent() -> None:
    """Have the kernel kill this process when the front dies, however busy it is (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_when_orphaned(link: ReplicaLink) -> None:
    """End this process when the front closes the link, even if the event loop is stuck."""
    threading.Thread(
        target=_wait_for_hangup, args=(link.dup_socket(),), name="orphan-watch", daemon=True
    ).start()


def _wait_for_hangup(line: socket.socket) -> None:
    poll = select.poll()
    poll.register(line, getattr(select, "POLLRDHUP", 0))  # POLLHUP is always reported
    poll.poll()
    time.sleep(_ORPHAN_GRACE_S)
    os._exit(Outcome.ORPHANED)
