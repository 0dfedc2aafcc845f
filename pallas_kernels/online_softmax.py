"""Attention over keys that come block by block, in plain jnp: one pass, no score is kept.

The recurrence is that of Milakov and Gimelshein, "Online normalizer calculation for softmax"
(arXiv 1805.02867): a block that raises the peak scales down what was summed before.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

HIDDEN = -1e30
"""Score of a key that a query must not see. Finite, so that no NaN comes of a block of which a
query sees nothing; what such blocks add is faded to 0 by the first key that it does see."""


class Partial(NamedTuple):
    """Attention over the blocks seen so far, float32."""

    peak: jax.Array
    """[batch, queries]: highest score."""
    total: jax.Array
    """[batch, queries]: sum of exp(score - peak)."""
    weighted: jax.Array
    """[batch, queries, width]: sum of exp(score - peak) * value."""


def nothing_seen(queries: jax.Array) -> Partial:
    """The state before the first block, for queries [batch, queries, width]."""
    return Partial(
        peak=jnp.full(queries.shape[:-1], HIDDEN, jnp.float32),
        total=jnp.zeros(queries.shape[:-1], jnp.float32),
        weighted=jnp.zeros(queries.shape, jnp.float32),
    )


def see_block(
    seen: Partial,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    soft_cap: float | None,
) -> Partial:
    """Take in one block of keys and values.

    queries are scaled float32 [batch, queries, width], keys and values [batch, keys, width],
    visible is broadcastable to [batch, queries, keys]. Values must be finite, and 0 for the keys
    that no query sees.
    """
    scores = _dot(queries, keys, contract=2)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(visible, scores, HIDDEN)
    peak = jnp.maximum(seen.peak, scores.max(-1))
    fade = jnp.exp(seen.peak - peak)
    weights = jnp.exp(scores - peak[..., None])
    return Partial(
        peak=peak,
        total=seen.total * fade + weights.sum(-1),
        weighted=seen.weighted * fade[..., None] + _dot(weights, values, contract=1),
    )


def result(seen: Partial) -> jax.Array:
    """The attention output [batch, queries, width]; 0 for a query that saw no key."""
    total = jnp.where(seen.total == 0, 1.0, seen.total)
    return seen.weighted / total[..., None]


def _dot(left: jax.Array, right: jax.Array, contract: int) -> jax.Array:
    """Per batch, contract the last axis of `left` with axis `contract` of `right`."""
    return lax.dot_general(
        left,
        right,
        (((2,), (contract,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
