"""A vocabulary in blocks: most questions about a row are answered by one figure per block."""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK_LEN = 128


def in_blocks(entries: jax.Array) -> jax.Array:
    """[rows, vocab] -> [rows, blocks, BLOCK_LEN], in order, padded with -inf."""
    rows, vocab = entries.shape
    padded = jnp.pad(entries, ((0, 0), (0, -vocab % BLOCK_LEN)), constant_values=-jnp.inf)
    return padded.reshape(rows, -1, BLOCK_LEN)


def pick_block(blocks: jax.Array, index: jax.Array) -> jax.Array:
    """Block index[r] of each row: [rows, blocks, BLOCK_LEN], [rows] -> [rows, BLOCK_LEN]."""
    return jnp.take_along_axis(blocks, index[:, None, None], axis=1)[:, 0]
