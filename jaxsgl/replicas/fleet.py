"""Which replicas a server has, on which devices. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxsgl.config import ConfigError, ReplicasConfig

_MODEL_WEIGHTS = {
    "V100": 1.0,
    "T4": 0.5,
    "L4": 1.0,
    "A10": 1.0,
    "L40": 1.5,
    "A100": 2.0,
    "H100": 4.0,
    "H200": 4.5,
    "B200": 8.0,
}
"""How much faster than a V100 a GPU decodes, about: the ratio of memory bandwidths."""


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    """As the driver numbers it, or as CUDA_VISIBLE_DEVICES names it."""
    model: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    replica_id: int
    devices: tuple[str, ...]
    """Those of this machine, by name."""
    weight: float
    elsewhere: tuple[str, ...] = ()
    """Those of other machines, as RANK:NUMBER."""


@dataclass(frozen=True, slots=True)
class Fleet:
    mesh: str
    """Of each replica, as `EngineConfig.mesh` says it, without dp."""
    device_kind: str
    """What its devices are called: GPU or CPU."""
    replicas: tuple[ReplicaPlan, ...]
    warnings: tuple[str, ...] = ()


def plan_fleet(
    mesh: str | None, gpus: Sequence[Device], num_kv_heads: int, config: ReplicasConfig
) -> Fleet:
    """Replicas over `gpus`, or without any on the CPU, which is split into as many devices as asked
    for.

    Without `mesh` all GPUs are used. Raises ConfigError.
    """
    dp, axes = split_mesh(mesh or _default_mesh(len(gpus), num_kv_heads))
    size = math.prod(axes.values())
    if gpus and dp * size > len(gpus):
        raise ConfigError(f"the mesh needs {dp * size} devices, this machine has {len(gpus)}")
    devices = list(gpus) or [Device(str(index)) for index in range(dp * size)]
    groups = [devices[start : start + size] for start in range(0, dp * size, size)]
    weights, warnings = _weights(groups, bool(gpus), config)
    return Fleet(
        mesh=",".join(f"{axis}={number}" for axis, number in axes.items()),
        device_kind="GPU" if gpus else "CPU",
        replicas=tuple(
            ReplicaPlan(index, tuple(device.name for device in group), weight)
            for index, (group, weight) in enumerate(zip(groups, weights, strict=True))
        ),
        warnings=warnings,
    )


def split_mesh(mesh: str) -> tuple[int, dict[str, int]]:
    """The number of replicas and the axes of each one's own mesh. Raises ConfigError."""
    axes: dict[str, int] = {}
    for pair in mesh.split(","):
        axis, _, size = pair.strip().partition("=")
        if not axis or axis in axes or not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"--mesh {mesh!a} is not understood; write it like dp=2,tp=2")
        axes[axis] = int(size)
    return axes.pop("dp", 1), axes or {"tp": 1}


def _default_mesh(num_gpus: int, num_kv_heads: int) -> str:
    """All GPUs but those that are left over by the largest tp that divides the KV heads."""
    sizes = [size for size in range(1, max(1, num_gpus) + 1) if num_kv_heads % size == 0]
    return f"dp={max(1, num_gpus // sizes[-1])},tp={sizes[-1]}"


def _weights(
    groups: Sequence[Sequence[Device]], are_gpus: bool, config: ReplicasConfig
) -> tuple[list[float], tuple[str, ...]]:
    if config.replica_weights is not None:
        return _given_weights(config.replica_weights, len(groups)), ()
    if config.load_balancing_policy != "weighted" or not are_gpus:
        return [1.0] * len(groups), ()
    weights: list[float] = []
    warnings: list[str] = []
    for group in groups:
        known = [_MODEL_WEIGHTS[word] for word in _words(group[0].model) if word in _MODEL_WEIGHTS]
        if not known:
            warnings.append(f"GPU {group[0].name} ({group[0].model}) gets weight 1: not known")
        weights.append(known[0] if known else 1.0)
    return weights, tuple(warnings)


def _given_weights(text: str, num_replicas: int) -> list[float]:
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != num_replicas or not all(0 < w < math.inf for w in weights):
        raise ConfigError(
            f"--replica-weights {text!a} are not {num_replicas} positive numbers, one per replica"
        )
    return weights


def _words(model: str) -> list[str]:
    return model.replace("-", " ").split()
