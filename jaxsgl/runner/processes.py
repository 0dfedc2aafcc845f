"""jax over several processes, which together are one runner."""

from __future__ import annotations

import hashlib
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxsgl.config import ConfigError

_MEET_TIMEOUT_S = 300
_SILENCE_S = 60
"""After which jax ends the others: it is the last to notice, e.g. that a process was stopped."""


def join_processes(coordinator: str, num_processes: int, rank: int) -> None:
    """Have jax's devices be those of all processes. Nothing of jax may have run before. Returns
    when all have called this; rank 0 listens at `coordinator`."""
    # Gloo says what it does on standard output, which the server announces itself on.
    os.dup2(2, 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        rank,
        initialization_timeout=_MEET_TIMEOUT_S,
        heartbeat_timeout_seconds=_SILENCE_S,
        coordinator_bind_address=coordinator if rank == 0 else None,
    )


def agreed_pages(num_pages: int, model: str) -> int:
    """The least of what any process has room for. Raises ConfigError, on all of them, if they would
    not run the same `model`."""
    digest = int.from_bytes(hashlib.sha256(model.encode()).digest()[:4], "big") >> 1
    own = np.array([num_pages, digest], np.int32)
    everyone = np.asarray(multihost_utils.process_allgather(own)).reshape(-1, 2)
    if len(set(everyone[:, 1].tolist())) > 1:
        raise ConfigError("the checkpoints of the machines are of different models")
    return int(everyone[:, 0].min())
