"""Loads a model and prints the memory it took at its peak beyond what it left on the device, in
bytes: `python -m tests.loading.memory_child MODEL [hoard]`.

A process of its own, because a peak is the process's for ever.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from flax import nnx
from numpy.typing import NDArray

from jaxsgl.loading.checkpoint import Checkpoint, open_checkpoint
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint
from jaxsgl.loading.orbax_weights import restore_weights  # noqa: F401 - no part of the peak
from jaxsgl.models.llama import Llama
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import load_weights
from tests.models.tiny import one_device_mesh


class Hoard:
    """The control: keeps every tensor that it gave out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._kept: list[NDArray[np.float32]] = []

    def tensor(self, name: str) -> NDArray[np.float32]:
        self._kept.append(self._checkpoint.tensor(name))
        return self._kept[-1]


def _peak_bytes() -> int:
    """Of this program alone: getrusage counts the parent's size at the fork as well."""
    status = Path("/proc/self/status").read_text()
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kibibytes) * 1024


def main(path: Path, *options: str) -> None:
    checkpoint: Any = open_checkpoint(path)
    layout = resolve_layout(checkpoint.config, one_device_mesh())
    jax.device_put(np.zeros(8)).block_until_ready()
    before_bytes = psutil.Process().memory_info().rss
    if isinstance(checkpoint, OrbaxCheckpoint):
        model = checkpoint.restore(Llama, layout, jnp.bfloat16, lambda done, total: None)
    else:
        source = Hoard(checkpoint) if "hoard" in options else checkpoint
        model = load_weights(Llama, checkpoint.config, source, layout, jnp.bfloat16)
    peak_bytes = _peak_bytes()
    device_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    sys.stdout.write(f"{peak_bytes - before_bytes - device_bytes}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
