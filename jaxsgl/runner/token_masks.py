"""Masks of tokens that must not be drawn, laid over a step's logits before its draw.

A program of its own, run only for steps that have masks: other steps know nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.sharding import Layout
from jaxsgl.runner.packing import PackedInts
from jaxsgl.step import StepLimits, StepMasks
from pallas_kernels.token_mask.api import mask_logits

NO_MASK = -1


def mask_fields(num_logits: int, limits: StepLimits) -> PackedInts:
    """Layout of what the mask program is told: a mask for each row at most."""
    num_masks, num_words = min(num_logits, limits.max_rows), -(-limits.vocab_size // 32)
    return PackedInts({"mask_row": (num_logits,), "masks": (num_masks, num_words)})


def jit_mask(layout: Layout, fields: PackedInts, num_logits: int, backend: str) -> Any:
    """run(logits, vector) -> logits, which are donated; see `mask_logits`."""

    def mask(logits: jax.Array, vector: jax.Array) -> jax.Array:
        arrays = fields.unpack(vector)
        masks = jax.lax.bitcast_convert_type(arrays["masks"], jnp.uint32)
        return mask_logits(logits, masks, arrays["mask_row"], backend=backend)

    mask.__name__ = f"mask_{num_logits}"
    return jax.jit(mask, donate_argnames="logits", out_shardings=layout.sharding())


def pack_masks(
    fields: PackedInts, masks: StepMasks, is_due: Callable[[], bool]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The mask program's vector, and [logits] which draws are skipped; see `StepMasks.fill`."""
    vector, arrays = fields.empty()
    arrays["mask_row"][:] = NO_MASK
    filled = masks.fill(arrays["masks"].view(np.uint32), is_due)
    arrays["mask_row"][: len(filled.mask_row)] = filled.mask_row
    return vector, filled.skipped
