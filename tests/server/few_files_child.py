"""A server over the fake engine that may have 64 files open, told on standard error where it is.
Ends on SIGTERM, with 0 if nothing is left of any request."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys

from jaxsgl.config import ServerConfig
from jaxsgl.metrics import Metrics
from server.app import create_app
from server.site import bind_socket, start_site
from tests.server.fake_engine import FakeEngine

NUM_FILES = 64


async def main() -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (NUM_FILES, NUM_FILES))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    engine = FakeEngine()
    sock = bind_socket("127.0.0.1", 0)
    runner = await start_site(create_app(engine, ServerConfig(), Metrics()), sock)
    sys.stderr.write(f"{sock.getsockname()[1]}\n")
    sys.stderr.flush()
    await ended.wait()
    await runner.cleanup()
    await asyncio.sleep(0)
    return len(engine.open) + len(asyncio.all_tasks()) - 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
