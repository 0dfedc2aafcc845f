"""One replica that spans machines: what each of them has to be told. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxsgl.config import ConfigError, EngineConfig, ReplicasConfig
from jaxsgl.replicas.fleet import Device, Fleet, ReplicaPlan, split_mesh


def choose_launcher(config: EngineConfig, replicas: ReplicasConfig) -> str:
    """Who starts the processes of replicas. Raises ConfigError for settings of several machines
    that contradict each other."""
    several, launcher = config.nnodes > 1, replicas.launcher
    if launcher is None:
        launcher = "static" if several else "local"
    if launcher == "static" and not several:
        raise ConfigError("--launcher static is for --nnodes of 2 or more")
    if launcher != "static" and several:
        raise ConfigError(f"--nnodes {config.nnodes} needs --launcher static, not {launcher}")
    if config.node_rank >= config.nnodes:
        raise ConfigError(f"--node-rank {config.node_rank} is none of --nnodes {config.nnodes}")
    for flag, value in (
        ("--dist-init-addr", config.dist_init_addr),
        ("--world-key-file", config.world_key_file),
    ):
        if several and value is None:
            raise ConfigError(f"--nnodes {config.nnodes} needs {flag}")
        if not several and value is not None:
            raise ConfigError(f"{flag} is for --nnodes of 2 or more")
    if launcher != "ray" and replicas.ray_address is not None:
        raise ConfigError(f"--ray-address is for --launcher ray, not {launcher}")
    if launcher == "ray" and config.mesh is None:
        raise ConfigError("--launcher ray needs --dp and --tp, or --mesh")
    return launcher


def plan_world(config: EngineConfig, gpus: Sequence[Device]) -> Fleet:
    """The one replica of this server, over `gpus` of this machine, or its CPU, and as many devices
    of each of the others. Raises ConfigError."""
    if config.mesh is None:
        raise ConfigError(f"--nnodes {config.nnodes} needs --tp or --mesh")
    dp, axes = split_mesh(config.mesh)
    size, nnodes = math.prod(axes.values()), config.nnodes
    if dp != 1:
        raise ConfigError(f"--nnodes {nnodes} makes one replica; --mesh {config.mesh} has dp={dp}")
    if size % nnodes:
        raise ConfigError(f"the mesh has {size} devices, which {nnodes} machines cannot share")
    share = size // nnodes
    if gpus and share > len(gpus):
        raise ConfigError(f"each machine has {share} devices of the mesh; this has {len(gpus)}")
    here = [device.name for device in gpus[:share]] or [str(n) for n in range(share)]
    others = (rank for rank in range(nnodes) if rank != config.node_rank)
    return Fleet(
        mesh=",".join(f"{axis}={number}" for axis, number in axes.items()),
        device_kind="GPU" if gpus else "CPU",
        replicas=(
            ReplicaPlan(
                0,
                tuple(here),
                1.0,
                elsewhere=tuple(f"{rank}:{n}" for rank in others for n in range(share)),
            ),
        ),
    )
