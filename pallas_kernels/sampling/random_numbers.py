"""The random numbers of a row: a function of its seed and position only.

Tokens are drawn by a race: of entries with weights, each runs for a time that is exponential with
its weight as rate, and the first to arrive is drawn. That is Gumbel-max (Gumbel 1954; Yellott 1977)
without its logarithm. Rounding of weights moves times by as little as weights are moved; it changes
the winner only where two times are that close. Inverting a cumulative sum has a boundary per entry
that rounding may move across the one random number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from pallas_kernels.sampling.api import SamplingArrays

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


class Key(NamedTuple):
    """Two uint32 words of one shape."""

    low: jax.Array
    high: jax.Array


def threefry(key: Key, counter: Key) -> Key:
    """Threefry-2x32 of 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
    2011); shapes broadcast. In operations that every kernel language has."""
    schedule = (key.low, key.high, key.low ^ key.high ^ jnp.uint32(PARITY))
    low, high = counter.low + schedule[0], counter.high + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            low = low + high
            high = (high << jnp.uint32(rotation)) | (high >> jnp.uint32(32 - rotation))
            high = high ^ low
        low = low + schedule[(group + 1) % 3]
        high = high + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return Key(low, high)


def row_keys(sampling: SamplingArrays) -> Key:
    """A key per row, each word [rows]."""
    seed = Key(sampling.seed[:, 0], sampling.seed[:, 1])
    position = sampling.position.astype(jnp.uint32)
    return threefry(seed, Key(position, jnp.zeros_like(position)))


def race(key: Key, heat: Any, index: jax.Array, weights: jax.Array) -> jax.Array:
    """Speeds (1 / time) of the entries of these indices (int32) in a race; the largest is drawn.

    An entry's random number is that of (key, heat, index): the same whoever else runs. Entries of
    weight 0 have -1, others at least 0.
    """
    heat = jnp.asarray(heat).astype(jnp.uint32)
    bits = threefry(key, Key(index.astype(jnp.uint32), heat)).low
    # Short times decide, and small numbers give them: so these have all their digits.
    coarse = (bits >> jnp.uint32(8)).astype(jnp.int32).astype(jnp.float32)
    fine = (bits & jnp.uint32(255)).astype(jnp.int32).astype(jnp.float32)
    uniform = coarse * jnp.float32(2.0**-24) + (fine + jnp.float32(0.5)) * jnp.float32(2.0**-32)
    time = -jnp.log1p(-jnp.minimum(uniform, jnp.float32(1 - 2.0**-24)))
    return jnp.where(weights > 0, weights / time, -1.0)
