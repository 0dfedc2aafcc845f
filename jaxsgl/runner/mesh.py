"""The device mesh, as people write it: `tp=4`, `fsdp=2,tp=4`, or `tp=2,ep=2`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from jaxsgl.config import ConfigError

KNOWN_AXES = ("tp", "fsdp", "ep")


def parse_mesh(text: str) -> Mapping[str, int]:
    """Sizes by axis of comma-separated `axis=size` pairs. Raises ConfigError."""
    sizes: dict[str, int] = {}
    for pair in text.split(","):
        axis, _, size = pair.strip().partition("=")
        if axis not in KNOWN_AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"--mesh {text!a} is not understood; write it like tp=2")
        sizes[axis] = int(size)
    return sizes


def mesh_text(mesh: Mesh) -> str:
    """What `parse_mesh` takes."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def make_mesh(sizes: Mapping[str, int], num_processes: int = 1) -> Mesh:
    """A mesh over the first devices. Raises ConfigError when there are too few, and, with several
    processes, unless it is over all devices of all of them.

    Nothing of jax may have run before on a machine without accelerators: there, its one CPU is
    split into as many devices as the mesh asks for.
    """
    num_devices = math.prod(sizes.values())
    if num_devices > 1:
        # Refused once jax has devices; then those it has must do.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(1, num_devices // num_processes))
    devices = jax.devices()
    where = "this machine has" if num_processes == 1 else f"{num_processes} machines together have"
    if len(devices) < num_devices or (num_processes > 1 and len(devices) > num_devices):
        raise ConfigError(f"the mesh needs {num_devices} devices, {where} {len(devices)}")
    return Mesh(np.array(devices[:num_devices]).reshape(*sizes.values()), tuple(sizes))
