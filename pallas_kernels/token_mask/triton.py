"""Token masks for Pallas-Triton: programs of masked rows write -inf, the others end at once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

CHUNK_WORDS = 128
"""Words of a mask per program."""
NUM_WARPS = 4


def mask_logits(
    logits: jax.Array, masks: jax.Array, mask_row: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """See `api.mask_logits`."""
    rows, vocab = logits.shape
    vocab_words = pl.cdiv(vocab, 32)
    chunk_words = min(CHUNK_WORDS, pl.next_power_of_2(vocab_words))
    one_row = pl.BlockSpec((None, vocab), lambda row, chunk: (row, 0))
    return pl.pallas_call(
        functools.partial(_mask_chunk, chunk_words=chunk_words),
        grid=(rows, pl.cdiv(vocab_words, chunk_words)),
        in_specs=[
            pl.BlockSpec((None,), lambda row, chunk: (row,)),
            pl.BlockSpec(masks.shape, lambda row, chunk: (0, 0)),
            one_row,
        ],
        out_specs=one_row,
        out_shape=jax.ShapeDtypeStruct(logits.shape, logits.dtype),
        input_output_aliases={2: 0},
        compiler_params=plt.CompilerParams(NUM_WARPS, num_stages=1),
        interpret=interpret,
        name="mask_logits",
    )(mask_row, masks, logits)


def _mask_chunk(
    mask_row_ref: Any, masks_ref: Any, _: Any, out_ref: Any, *, chunk_words: int
) -> None:
    """Some words of one row: masks_ref [masks, words]; out_ref [vocab] holds the logits."""
    num_masks, num_words = masks_ref.shape
    (vocab,) = out_ref.shape
    number = mask_row_ref[...]
    index = pl.program_id(1) * chunk_words + jnp.arange(chunk_words, dtype=jnp.int32)

    @pl.when((number >= 0) & (number < num_masks))
    def _() -> None:
        # A mask's number for every word: the interpreter wants all indices of one kind.
        place = (jnp.full_like(index, number), index)
        word = plt.load(masks_ref.at[place], mask=index < num_words, other=jnp.uint32(0))
        bit = jnp.arange(32, dtype=jnp.uint32)[None, :]
        token = index[:, None] * 32 + bit.astype(jnp.int32)
        allowed = ((word[:, None] >> bit) & 1) != 0
        plt.store(
            out_ref.at[token],
            jnp.full(token.shape, -jnp.inf, out_ref.dtype),
            mask=~allowed & (token < vocab),
        )
