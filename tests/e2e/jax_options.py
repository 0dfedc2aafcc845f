"""Keeps what a runner sets for its process from the tests that follow in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

CHANGED_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_default_matmul_precision",
)


@contextlib.contextmanager
def jax_options_restored() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in CHANGED_OPTIONS}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
