"""Token masks in plain jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mask_logits(logits: jax.Array, masks: jax.Array, mask_row: jax.Array) -> jax.Array:
    """See `api.mask_logits`."""
    rows, vocab = logits.shape
    num_masks, num_words = masks.shape
    words = masks[jnp.clip(mask_row, 0, num_masks - 1)]
    bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    bits = bits.reshape(rows, num_words * 32)[:, :vocab]
    allowed = jnp.pad(bits != 0, ((0, 0), (0, vocab - bits.shape[1])))
    is_free = (mask_row < 0) | (mask_row >= num_masks)
    return jnp.where(is_free[:, None] | allowed, logits, -jnp.inf)
