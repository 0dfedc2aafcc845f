"""Where the replicas of a fleet live."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from jaxsgl.config import EngineConfig
from jaxsgl.logs import LogSettings
from jaxsgl.replicas.faults import faults_of
from jaxsgl.replicas.fleet import Fleet, ReplicaPlan
from jaxsgl.replicas.launch import Launch, ProcessLaunch
from jaxsgl.replicas.ray_launch import RayCluster, RayLaunch
from jaxsgl.replicas.seat import ReplicaSpec


def local_replicas(
    fleet: Fleet, config: EngineConfig, log: LogSettings, environment: Mapping[str, str]
) -> list[ReplicaSpec]:
    """Processes of this machine, each of which sees its own devices alone."""

    def launch(plan: ReplicaPlan, epoch: int) -> Launch:
        own = own_config(config, fleet, plan, epoch)
        return ProcessLaunch(
            epoch, own, log=log, environment={**environment, **own_devices(fleet, plan)}
        )

    return _specs(fleet, launch)


def ray_replicas(
    fleet: Fleet, config: EngineConfig, log: LogSettings, cluster: RayCluster
) -> list[ReplicaSpec]:
    """Processes on the machines of a Ray cluster, which gives each its devices."""

    def launch(plan: ReplicaPlan, epoch: int) -> Launch:
        num_gpus = len(plan.devices) if fleet.device_kind == "GPU" else 0
        return RayLaunch(epoch, own_config(config, fleet, plan, epoch), cluster, num_gpus, log=log)

    return _specs(fleet, launch)


def own_config(config: EngineConfig, fleet: Fleet, plan: ReplicaPlan, epoch: int) -> EngineConfig:
    """That of one replica in one of its lives."""
    faults = faults_of(config.inject_fault, plan.replica_id, epoch)
    return dataclasses.replace(config, mesh=fleet.mesh, inject_fault=faults)


def _specs(fleet: Fleet, launch: Callable[[ReplicaPlan, int], Launch]) -> list[ReplicaSpec]:
    return [
        ReplicaSpec(partial(launch, plan), plan.devices + plan.elsewhere, plan.weight)
        for plan in fleet.replicas
    ]


def own_devices(fleet: Fleet, plan: ReplicaPlan) -> dict[str, str]:
    """What a child must be told so that it finds its own GPUs; they are numbered as nvidia-smi
    does."""
    if fleet.device_kind != "GPU":
        return {}
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(plan.devices),
    }
