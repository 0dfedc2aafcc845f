"""`python -m jaxsgl.serve`: one command line to a running server. The composition root.

Turns signals into an orderly end. It imports no jax: models run in replica processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from jaxsgl.actors.text_actor import TextActor
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ConfigError, EngineConfig, ReplicasConfig, ServerConfig
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.model_files import open_model
from jaxsgl.logs import LogSettings, set_up_logging
from jaxsgl.metrics import Metrics
from jaxsgl.replicas.fleet import plan_fleet
from jaxsgl.replicas.gpus import find_gpus
from jaxsgl.replicas.launch import StartError
from jaxsgl.replicas.launchers import local_replicas, own_devices, ray_replicas
from jaxsgl.replicas.machines import choose_launcher, plan_world
from jaxsgl.replicas.pool import ReplicaPool
from jaxsgl.replicas.pulse import HealthLimits
from jaxsgl.replicas.ray_launch import RayCluster
from jaxsgl.replicas.restarts import RestartPolicy
from jaxsgl.replicas.routing.policies import make_policy
from jaxsgl.replicas.seat import SeatRules
from jaxsgl.replicas.start_progress import StartProgress
from jaxsgl.tokenizer import TokenizerError
from jaxsgl.world.node import keep_following
from server.app import create_app
from server.site import bind_socket, start_site, tls_context
from server.turns import Turns, run_in_turns

EXIT_FAILED = 1
EXIT_USAGE = 2
STOP_TIMEOUT_S = 5.0
OTHER_FILES = 256
"""Open files beside the connections: the loop's, replicas', and what libraries keep."""

CONFIGS = (EngineConfig, ReplicasConfig, ServerConfig)
"""What the command line sets."""

log = logging.getLogger("jaxsgl")


def main(argv: list[str] | None = None, prog: str = "python -m jaxsgl.serve") -> int:
    """Serve until told to stop; return the exit code.

    0 after SIGTERM or SIGINT, 2 if the settings or the model cannot be used, 1 if the engine failed
    beyond repair.
    """
    _open_standard_streams()
    try:
        configs = parse_command_line(
            sys.argv[1:] if argv is None else argv,
            prog,
            "Serve a language model over an OpenAI-compatible API.",
            *CONFIGS,
        )
        engine_config, replicas_config, server_config = configs
        set_up_logging(_log_settings(server_config))
        if server_config.log_level_http is not None:
            logging.getLogger("server").setLevel(server_config.log_level_http.upper())
        return run_in_turns(
            lambda turns: serve(engine_config, replicas_config, server_config, turns)
        )
    except (ConfigError, CheckpointError, TokenizerError, StartError) as error:
        sys.stderr.write(f"jaxsgl: {error}\n")
        return EXIT_USAGE


async def serve(
    engine_config: EngineConfig,
    replicas_config: ReplicasConfig,
    server_config: ServerConfig,
    turns: Turns,
) -> int:
    """Start everything in order, wait for the end, stop everything in reverse."""
    launcher = choose_launcher(engine_config, replicas_config)
    if engine_config.node_rank > 0:
        return await _follow(engine_config, server_config)
    # Cheap refusals first: a taken port or a bad file is told before any weights are read.
    _check_policy(replicas_config, server_config)
    tls = tls_context(server_config)
    server_config = _with_open_files(server_config)
    with (
        bind_socket(server_config.host, server_config.port) as sock,
        _ray_cluster(launcher, replicas_config) as cluster,
    ):
        _warn_if_open(server_config, sock)
        signals = _Signals()
        checkpoint, tokenizer = open_model(engine_config)
        gpus = await find_gpus(os.environ) if cluster is None else cluster.gpus
        if launcher == "static":
            fleet = plan_world(engine_config, gpus)
        else:
            num_kv_heads = checkpoint.config.num_kv_heads
            fleet = plan_fleet(engine_config.mesh, gpus, num_kv_heads, replicas_config)
        for warning in fleet.warnings:
            log.warning("%s", warning)
        log_settings = _log_settings(server_config)
        if cluster is None:
            replicas = local_replicas(fleet, engine_config, log_settings, os.environ)
        else:
            replicas = ray_replicas(fleet, engine_config, log_settings, cluster)
        text = TextActor(tokenizer)
        progress = StartProgress()
        model_name = engine_config.served_model_name or checkpoint.config.name
        metrics = Metrics(server_config.metrics_prefix, model_name)
        pool = ReplicaPool(
            engine_config,
            text,
            replicas,
            policy=make_policy(replicas_config.load_balancing_policy, engine_config.random_seed),
            rules=SeatRules(
                RestartPolicy(max_restarts=replicas_config.max_restarts),
                HealthLimits(engine_config.step_timeout_s, replicas_config.health_check_interval),
                server_config.drain_timeout_s,
            ),
            follows_latency=server_config.enable_metrics,
            max_unhealthy=replicas_config.max_unhealthy_gpus,
            device_kind=fleet.device_kind,
            on_progress=progress.show,
            on_restart=metrics.replica_restarted,
        )
        metrics.watch_engine(pool.stats)
        metrics.watch_replicas(pool.replicas)
        app = create_app(pool, server_config, metrics, engine_config)
        await text.start()
        # From here on /health answers, and /ready says no.
        site = await start_site(app, sock, tls, turns)
        try:
            return await _run(pool, server_config, sock, signals, progress)
        finally:
            await pool.stop()
            await site.cleanup()
            await text.stop(STOP_TIMEOUT_S)
            signals.close()


async def _run(
    pool: ReplicaPool,
    config: ServerConfig,
    sock: socket.socket,
    signals: _Signals,
    progress: StartProgress,
) -> int:
    starting = asyncio.create_task(pool.start())
    await signals.first_of(starting)
    progress.close()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return 0
    starting.result()
    _announce(pool, config, sock)

    await signals.first_of(pool.failed)
    exit_code = 0
    if pool.failed.done():
        log.error("giving up: %s", pool.failed.result())
        exit_code = EXIT_FAILED
    log.info("stopping; running requests have %g s", config.drain_timeout_s)
    draining = asyncio.create_task(pool.drain(config.drain_timeout_s))
    await signals.first_of(draining)
    if not draining.done():
        log.info("stopping now")
        draining.cancel()
        await asyncio.wait({draining})
    return exit_code


def _check_policy(replicas_config: ReplicasConfig, server_config: ServerConfig) -> None:
    """Raises ConfigError."""
    policy = replicas_config.load_balancing_policy
    if policy == "min-latency" and not server_config.enable_metrics:
        raise ConfigError(f"--load-balancing-policy {policy} needs --enable-metrics")


async def _follow(engine_config: EngineConfig, server_config: ServerConfig) -> int:
    """Serve nobody: be a part of a replica that another machine serves with."""
    fleet = plan_world(engine_config, await find_gpus(os.environ))
    environment = {**os.environ, **own_devices(fleet, fleet.replicas[0])}
    signals = _Signals()
    following = asyncio.create_task(
        keep_following(
            dataclasses.replace(engine_config, mesh=fleet.mesh),
            _log_settings(server_config),
            environment,
        )
    )
    try:
        await signals.first_of(following)
        return EXIT_USAGE if following.done() else 0
    finally:
        following.cancel()
        await asyncio.wait({following})
        signals.close()


@contextlib.contextmanager
def _ray_cluster(launcher: str, config: ReplicasConfig) -> Iterator[RayCluster | None]:
    if launcher != "ray":
        yield None
        return
    cluster = RayCluster(config.ray_address)
    try:
        yield cluster
    finally:
        cluster.close()


def _log_settings(config: ServerConfig) -> LogSettings:
    return LogSettings(config.log_level, config.log_format)


def _open_standard_streams() -> None:
    """What is written to one that was closed before the start goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))


def _say(text: str) -> None:
    """Print to standard output, if anybody reads it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What was not written would be tried again at the exit, and make that a failure.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _with_open_files(config: ServerConfig) -> ServerConfig:
    """Each connection is an open file, and the usual soft limit is 1,024: raise it, or take so many
    connections that those beyond them can still be told so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.max_connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return config
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return config
    num_connections = max(allowed // 2, allowed - OTHER_FILES)
    log.warning("only %d files may be open: at most %d connections", allowed, num_connections)
    return dataclasses.replace(config, max_connections=num_connections)


def _warn_if_open(config: ServerConfig, sock: socket.socket) -> None:
    address = ipaddress.ip_address(sock.getsockname()[0])
    if not (address.is_loopback or config.api_key or config.api_key_file):
        log.warning(
            "ANYBODY WHO REACHES %s MAY USE THIS SERVER: it listens beyond this machine and asks "
            "for no key; set --api-key or --api-key-file, or --host 127.0.0.1",
            address,
        )


def _announce(pool: ReplicaPool, config: ServerConfig, sock: socket.socket) -> None:
    host, port = sock.getsockname()[:2]
    scheme = "http" if config.ssl_certfile is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    model = pool.model
    for note in pool.notes:
        log.info("%s", note)
    chat = '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    _say(
        f"jaxsgl ready at {url} ({model.name}, mesh {model.mesh}, {model.platform}), "
        f"attention backend {model.attention_backend}\n"
        f"try: curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{chat}'\n"
    )


class _Signals:
    """SIGTERM and SIGINT, each of which ends one wait."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._arrived.set)

    async def first_of(self, future: asyncio.Future[Any]) -> None:
        """Wait for the future or a signal that no earlier wait was ended by."""
        arrival = asyncio.create_task(self._arrived.wait())
        await asyncio.wait({future, arrival}, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            self._arrived.clear()
        arrival.cancel()

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)


if __name__ == "__main__":
    sys.exit(main())
