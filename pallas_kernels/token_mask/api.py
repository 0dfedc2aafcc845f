"""Token masks: the public function."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.backends import choose
from pallas_kernels.token_mask import triton, xla

BACKENDS = {
    "triton": triton.mask_logits,
    # On any device, slowly: for tests.
    "triton-interpret": functools.partial(triton.mask_logits, interpret=True),
    "tpu": xla.mask_logits,
    "xla": xla.mask_logits,
}


def mask_logits(
    logits: jax.Array, masks: jax.Array, mask_row: jax.Array, *, backend: str = "xla"
) -> jax.Array:
    """float32 logits [rows, vocab] with -inf where a token is not allowed, the others unchanged.

    Row r obeys masks[mask_row[r]], so that only rows with a grammar need a mask, and rows may share
    one; a row whose mask_row [rows] int32 is not the number of a mask (-1, say) is left as it is.
    masks uint32 [masks, words], one or more: bit i % 32 of word i // 32 says whether token i is
    allowed. Tokens beyond the last word are not; bits beyond the vocabulary mean nothing.

    "triton" works in place where the logits are donated or made in the same program, and neither
    reads nor writes rows without a mask; otherwise XLA copies the logits first.

    Raises ValueError for shapes and dtypes that do not fit, and for an unknown backend.
    """
    if logits.ndim != 2 or logits.dtype != jnp.float32:
        raise ValueError(
            f"logits must be float32 [rows, vocab], not {logits.dtype}{list(logits.shape)}"
        )
    if masks.ndim != 2 or 0 in masks.shape or masks.dtype != jnp.uint32:
        raise ValueError(
            f"masks must be uint32 [masks, words], at least one of each, "
            f"not {masks.dtype}{list(masks.shape)}"
        )
    if mask_row.shape != logits.shape[:1] or mask_row.dtype != jnp.int32:
        raise ValueError(
            f"mask_row must be int32 [{logits.shape[0]}], "
            f"not {mask_row.dtype}{list(mask_row.shape)}"
        )
    return choose(backend, BACKENDS)(logits, masks, mask_row)
