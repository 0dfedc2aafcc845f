"""The real front in a process of its own, over a replica that only steps by the clock."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bench.clocked_replica import VOCAB_SIZE
from jaxsgl.actors.text_actor import TextActor
from jaxsgl.config import EngineConfig, ServerConfig
from jaxsgl.logs import LogSettings, set_up_logging
from jaxsgl.metrics import Metrics
from jaxsgl.replicas.launch import ProcessLaunch
from jaxsgl.replicas.pool import ReplicaPool
from jaxsgl.replicas.seat import ReplicaSpec
from jaxsgl.tokenizer import TokenIdsOnly
from server.app import create_app
from server.site import bind_socket, start_site
from server.turns import Turns, run_in_turns


@dataclass(frozen=True)
class Front:
    port: int
    process_id: int


@contextlib.asynccontextmanager
async def start_front(
    step_ms: float,
    *,
    slots: int = 4096,
    queue: int = 4096,
    write_timeout_s: float = 30.0,
    log: Path | None = None,
) -> AsyncIterator[Front]:
    """A server that has ended when the context does. `log` gets what it logs, as JSON."""
    with contextlib.ExitStack() as files:
        stderr = None if log is None else files.enter_context(log.open("ab"))
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.clocked_front", "--step-ms", str(step_ms)),
            *("--slots", str(slots), "--queue", str(queue)),
            *("--write-timeout-s", str(write_timeout_s)),
            *(() if log is None else ("--log",)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert server.stdin is not None and server.stdout is not None
    try:
        yield Front(int(await server.stdout.readline()), server.pid)
    finally:
        server.stdin.close()
        await server.wait()


async def serve(args: argparse.Namespace, turns: Turns) -> None:
    """Serve until standard input ends; the first line of output is the port."""
    config = EngineConfig(max_queued_requests=args.queue)
    command = (sys.executable, "-m", "bench.clocked_replica", str(args.step_ms), str(args.slots))
    text = TextActor(TokenIdsOnly(VOCAB_SIZE))
    await text.start()
    spec = ReplicaSpec(lambda epoch: ProcessLaunch(epoch, config, command=command))
    pool = ReplicaPool(config, text, [spec])
    await pool.start()
    metrics = Metrics()
    metrics.watch_engine(pool.stats)
    server_config = ServerConfig(stream_write_timeout_s=args.write_timeout_s)
    with bind_socket("127.0.0.1", 0) as sock:
        site = await start_site(create_app(pool, server_config, metrics), sock, None, turns)
        sys.stdout.write(f"{sock.getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        await pool.stop()
        await site.cleanup()
        await text.stop(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--queue", type=int, required=True)
    parser.add_argument("--write-timeout-s", type=float, required=True)
    parser.add_argument("--log", action="store_true", help="log every request, as JSON")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    set_up_logging(LogSettings("info" if args.log else "warning", "json"))
    run_in_turns(lambda turns: serve(args, turns))


if __name__ == "__main__":
    main()
