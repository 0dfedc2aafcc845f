"""Adjusting logits and reading log-probabilities off them, in plain jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.sampling.blocks import BLOCK_LEN, in_blocks


def adjust_logits(
    logits: jax.Array,
    *,
    bias_ids: jax.Array,
    bias_values: jax.Array,
    end_ids: jax.Array,
    hold_back: jax.Array,
    output_counts: jax.Array,
    prompt_seen: jax.Array,
    presence_penalty: jax.Array,
    frequency_penalty: jax.Array,
    repetition_penalty: jax.Array,
) -> jax.Array:
    """See `api.adjust_logits`."""
    rows, vocab = logits.shape
    row = jnp.arange(rows)[:, None]
    logits = logits.at[row, bias_ids].add(bias_values, mode="drop", wrap_negative_indices=False)

    in_output = output_counts > 0
    repetition = jnp.where(prompt_seen | in_output, repetition_penalty[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits -= frequency_penalty[:, None] * output_counts
    logits -= jnp.where(in_output, presence_penalty[:, None], 0.0)

    held = jnp.where(hold_back[:, None], end_ids, vocab)
    return logits.at[row, held].set(-jnp.inf, mode="drop", wrap_negative_indices=False)


def log_probabilities(
    logits: jax.Array, token_ids: jax.Array, *, num_top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `api.log_probabilities`."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logprobs, token_ids[:, None], axis=1)[:, 0]
    top, top_ids = _largest(logprobs, num_top)
    return chosen, top_ids, top


def _largest(entries: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of each row and their ids, of equal ones the lowest id first."""
    rows, vocab = entries.shape
    blocks = in_blocks(entries)
    if blocks.shape[1] <= count:
        return lax.top_k(entries, count)
    # They lie in the blocks of the largest maxima, of which equal ones come in order of ids.
    _, chosen = lax.top_k(blocks.max(-1), count)
    chosen = jnp.sort(chosen, axis=-1)
    likely = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1)
    top, place = lax.top_k(likely, count)
    block = jnp.take_along_axis(chosen, place // BLOCK_LEN, axis=1)
    ids = jnp.minimum(block * BLOCK_LEN + place % BLOCK_LEN, vocab - 1)
    return top, ids.astype(jnp.int32)
