"""One pass over logits for Pallas-Triton: what each block of the vocabulary amounts to."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.sampling.blocks import BLOCK_LEN

CHUNK_BLOCKS = 32
"""Blocks per program."""
NUM_WARPS = 4


class Blocks(NamedTuple):
    """Per block of BLOCK_LEN tokens, [rows, blocks]; more blocks than needed, the rest empty."""

    maxima: jax.Array
    """float32: the largest logit, +inf if one is +inf or NaN."""
    sums: jax.Array
    """float32: sum of exp((logit - maximum) / temperature), 0 if all are -inf."""
    best: jax.Array
    """int32: the lowest token id with the largest logit."""


def summarise(logits: jax.Array, temperature: jax.Array, *, interpret: bool = False) -> Blocks:
    """Blocks of float32 logits [rows, vocab] with temperature [rows] > 0."""
    rows, vocab = logits.shape
    chunk_blocks = min(CHUNK_BLOCKS, pl.next_power_of_2(pl.cdiv(vocab, BLOCK_LEN)))
    num_chunks = pl.cdiv(vocab, chunk_blocks * BLOCK_LEN)
    shape = (rows, num_chunks * chunk_blocks)
    per_block = pl.BlockSpec((None, chunk_blocks), lambda row, chunk: (row, chunk))
    return Blocks(
        *pl.pallas_call(
            functools.partial(_summarise_chunk, chunk_blocks=chunk_blocks),
            grid=(rows, num_chunks),
            in_specs=[
                pl.BlockSpec((None,), lambda row, chunk: (row,)),
                pl.BlockSpec((None, vocab), lambda row, chunk: (row, 0)),
            ],
            out_specs=[per_block] * 3,
            out_shape=[
                jax.ShapeDtypeStruct(shape, jnp.float32),
                jax.ShapeDtypeStruct(shape, jnp.float32),
                jax.ShapeDtypeStruct(shape, jnp.int32),
            ],
            compiler_params=plt.CompilerParams(NUM_WARPS, num_stages=1),
            interpret=interpret,
            name="summarise_blocks",
        )(temperature, logits)
    )


def _summarise_chunk(
    temperature_ref: Any,
    logits_ref: Any,
    maxima_ref: Any,
    sums_ref: Any,
    best_ref: Any,
    *,
    chunk_blocks: int,
) -> None:
    """Some blocks of one row: logits_ref [vocab], the others [chunk_blocks]."""
    vocab = logits_ref.shape[0]
    block = pl.program_id(1) * chunk_blocks + jnp.arange(chunk_blocks, dtype=jnp.int32)
    token = block[:, None] * BLOCK_LEN + jnp.arange(BLOCK_LEN, dtype=jnp.int32)[None, :]
    logits = plt.load(logits_ref.at[token], mask=token < vocab, other=-jnp.inf)
    is_fault = ~(logits < jnp.inf)
    logits = jnp.where(is_fault, -jnp.inf, logits)
    maxima = logits.max(1)
    # The difference to a maximum of -inf would be NaN.
    base = jnp.where(maxima > -jnp.inf, maxima, 0.0)[:, None]
    has_fault = jnp.where(is_fault, 1, 0).max(1) > 0
    maxima_ref[...] = jnp.where(has_fault, jnp.inf, maxima)
    sums_ref[...] = jnp.exp((logits - base) / temperature_ref[...]).sum(1)
    best_ref[...] = jnp.where(logits == maxima[:, None], token, vocab).min(1)
