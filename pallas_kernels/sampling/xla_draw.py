"""Drawing a token per row, in plain jnp, without sorting the vocabulary.

A token is drawn by weight among all; whether the filters keep it is then seen from the weights
above its own. If they do not, they keep none of lesser weight either, so the next attempt draws
among the greater ones. What is accepted has the filtered distribution exactly. The idea of
rejection with a rising pivot is that of FlashInfer's sampling kernels (flashinfer.ai,
"Sorting-Free GPU Kernels for LLM Sampling").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.sampling.blocks import BLOCK_LEN, in_blocks, pick_block
from pallas_kernels.sampling.random_numbers import Key, race, row_keys

if TYPE_CHECKING:
    from pallas_kernels.sampling.api import SamplingArrays


def greedy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `api.greedy`."""
    best, _, valid = _best(logits, in_blocks(logits))
    return best, valid


def _best(logits: jax.Array, blocks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The token of the largest logit, that logit, and whether the row is valid; all [rows]."""
    tops = blocks.max(-1)
    top = tops.max(-1)
    # NaN and +inf survive a sum; -inf, which is allowed, cannot hide them.
    valid = jnp.isfinite(top) & (logits.sum(-1) < jnp.inf)
    best_block = jnp.argmax(tops, -1)
    best = best_block * BLOCK_LEN + jnp.argmax(pick_block(blocks, best_block), -1)
    return best.astype(jnp.int32), top, valid


def draw(logits: jax.Array, sampling: SamplingArrays) -> tuple[jax.Array, jax.Array]:
    """See `api.draw`."""
    blocks = in_blocks(logits)
    best, top, valid = _best(logits, blocks)
    samples = valid & (sampling.temperature > 0)

    def sample() -> jax.Array:
        temperature = jnp.where(samples, sampling.temperature, 1.0)[:, None, None]
        weights = jnp.exp((blocks - top[:, None, None]) / temperature)
        return jnp.where(samples, _sample(weights, sampling, samples), best)

    return lax.cond(jnp.any(samples), sample, lambda: best), valid


class _Attempt(NamedTuple):
    """A token per row, and whether it is still to be judged. All but `number` are [rows]."""

    number: jax.Array
    """Attempts before this one."""
    token: jax.Array
    weight: jax.Array
    pending: jax.Array
    """False where the token stands."""


def _sample(weights: jax.Array, sampling: SamplingArrays, samples: jax.Array) -> jax.Array:
    """Token ids [rows] by weights [rows, blocks, BLOCK_LEN], of which the largest per row is 1.

    Rows for which `samples` is false get a token of no meaning; their weights may be anything.
    """
    sums = weights.sum(-1)
    total = sums.sum(-1)
    limited = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
    key = Key(*(word[:, None] for word in row_keys(sampling)))
    block_index = jnp.arange(weights.shape[1], dtype=jnp.int32)[None, :]
    lane = jnp.arange(BLOCK_LEN, dtype=jnp.int32)[None, :]

    def attempt(
        number: jax.Array, floor: jax.Array, sums: jax.Array, pending: jax.Array
    ) -> _Attempt:
        """Draw among the tokens of weight above the floor [rows]; `sums` are theirs per block.

        First a block, then one of its tokens: two heats of an attempt.
        """
        block = jnp.argmax(race(key, 2 * number, block_index, sums), -1).astype(jnp.int32)
        entries = pick_block(weights, block)
        runners = jnp.where(entries > floor[:, None], entries, 0.0)
        speeds = race(key, 2 * number + 1, block[:, None] * BLOCK_LEN + lane, runners)
        place = jnp.argmax(speeds, -1).astype(jnp.int32)
        weight = jnp.take_along_axis(entries, place[:, None], axis=1)[:, 0]
        return _Attempt(number, block * BLOCK_LEN + place, weight, pending)

    def judge(last: _Attempt) -> _Attempt:
        """Keep the token of a pending row, or try again among the tokens of greater weight."""
        kept, sums_above = is_kept(weights, last.weight, total, sampling)
        pending = last.pending & ~kept
        new = attempt(last.number + 1, last.weight, sums_above, pending)
        return new._replace(
            token=jnp.where(pending, new.token, last.token),
            weight=jnp.where(pending, new.weight, last.weight),
        )

    floor, sums = lax.cond(
        jnp.any(sampling.top_k > 0),
        lambda: _above_hopeless(weights, sampling.top_k),
        lambda: (jnp.zeros_like(total), sums),
    )
    first = attempt(jnp.int32(0), floor, sums, samples & limited)
    return lax.while_loop(lambda last: jnp.any(last.pending), judge, first).token


def _above_hopeless(weights: jax.Array, top_k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A weight [rows] up to which top_k keeps nothing, and the weight above it per block.

    The k-th largest token weighs at least as much as the k-th largest of the blocks' maxima.
    """
    num_blocks = weights.shape[1]
    # XLA sorts integers several times faster, and the bits of floats >= 0 keep their order.
    maxima = jnp.sort(lax.bitcast_convert_type(weights.max(-1), jnp.int32), axis=-1)
    index = jnp.clip(num_blocks - top_k, 0, num_blocks - 1)
    kth = jnp.take_along_axis(maxima, index[:, None], axis=1)[:, 0]
    below_kth = lax.bitcast_convert_type(jnp.maximum(kth - 1, 0), jnp.float32)
    floor = jnp.where((top_k > 0) & (top_k <= num_blocks), below_kth, 0.0)
    return floor, jnp.where(weights > floor[:, None, None], weights, 0.0).sum(-1)


def is_kept(
    weights: jax.Array, weight: jax.Array, total: jax.Array, sampling: SamplingArrays
) -> tuple[jax.Array, jax.Array]:
    """Whether the filters keep a token of that weight [rows], and the weight above it per block.

    weights are [rows, blocks, BLOCK_LEN], total [rows] is their sum.
    """
    above = weights > weight[:, None, None]
    sums_above = jnp.where(above, weights, 0.0).sum(-1)
    mass_above = sums_above.sum(-1)
    by_p = (mass_above < sampling.top_p * total) | (sampling.top_p >= 1)

    limits_k = sampling.top_k > 0
    num_above = lax.cond(
        jnp.any(limits_k),
        lambda: jnp.where(above, 1.0, 0.0).sum((1, 2)).astype(jnp.int32),
        lambda: jnp.zeros(weight.shape, jnp.int32),
    )
    by_k = (num_above < sampling.top_k) | ~limits_k
    by_min = weight >= sampling.min_p
    # The largest weight is kept whatever the filters say, so that attempts come to an end.
    return (by_p & by_k & by_min) | (mass_above <= 0), sums_above
