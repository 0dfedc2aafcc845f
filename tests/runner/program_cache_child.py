"""Computes with programs that are kept in a folder: `python -m ... FOLDER [FILE_LIMIT]`.

Writes what it computed, whether that is right, and how many complaints about the folder there were.
"""

from __future__ import annotations

import resource
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgl.config import EngineConfig
from jaxsgl.runner.build import _configure_compiler

NUM_PROGRAMS = 6


def main() -> None:
    folder = sys.argv[1]
    if len(sys.argv) > 2:
        # A file can get no longer: the next write fails as on a disk that is full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    _configure_compiler(EngineConfig(compilation_cache_dir=folder), np.dtype(np.float32))
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        results = [float(jax.jit(_power(n))(jnp.float32(2.0))) for n in range(NUM_PROGRAMS)]
    right = results == [2.0**n + n for n in range(NUM_PROGRAMS)]
    about_cache = [c for c in complaints if "persistent compilation cache" in str(c.message)]
    sys.stdout.write(f"{right} {len(about_cache)}\n")


def _power(n: int):
    return lambda x: x**n + n


if __name__ == "__main__":
    main()
