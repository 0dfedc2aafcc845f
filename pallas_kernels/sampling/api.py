"""Sampling: the public functions. Every row is on its own: none looks at its neighbours.

A logit of -inf means a token that cannot be drawn; any other logit that is not finite is a fault.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.backends import choose
from pallas_kernels.sampling import triton_draw, xla_draw, xla_logits

GREEDY_BACKENDS = {
    "triton": triton_draw.greedy,
    "triton-interpret": functools.partial(triton_draw.greedy, interpret=True),
    "tpu": xla_draw.greedy,
    "xla": xla_draw.greedy,
}
ADJUST_BACKENDS = {"xla": xla_logits.adjust_logits}
DRAW_BACKENDS = {
    "triton": triton_draw.draw,
    # On any device, slowly: for tests.
    "triton-interpret": functools.partial(triton_draw.draw, interpret=True),
    "tpu": xla_draw.draw,
    "xla": xla_draw.draw,
}
LOGPROB_BACKENDS = {"xla": xla_logits.log_probabilities}


class SamplingArrays(NamedTuple):
    """How each row is drawn; all arrays are [rows]."""

    temperature: jax.Array
    """float32; 0 is greedy."""
    top_p: jax.Array
    """float32 in (0, 1]; 1 is off."""
    top_k: jax.Array
    """int32; below 1 is off."""
    min_p: jax.Array
    """float32 in [0, 1]; 0 is off."""
    seed: jax.Array
    """uint32 [rows, 2]"""
    position: jax.Array
    """int32: place of the drawn token in its sequence. With the seed it decides the draw."""


def greedy(logits: jax.Array, *, backend: str = "xla") -> tuple[jax.Array, jax.Array]:
    """What `draw` gives at temperature 0, of float32 logits [rows, vocab]: (token_ids int32, valid
    bool), [rows]."""
    _check_logits(logits)
    return choose(backend, GREEDY_BACKENDS)(logits)


def draw(
    logits: jax.Array, sampling: SamplingArrays, *, backend: str = "xla"
) -> tuple[jax.Array, jax.Array]:
    """Draw a token per row of float32 logits [rows, vocab]: (token_ids int32, valid bool), [rows].

    Temperature 0 takes the largest logit, of equal ones the lowest id. Otherwise a token's weight
    is w = exp((logit - largest) / temperature), and one is drawn by weight from those that all
    filters keep, each of which looks at the whole row:
    - top_k keeps a token if fewer than top_k tokens weigh more;
    - top_p keeps it if the tokens that weigh more hold less than top_p of all weight: the
      smallest set of largest weights that holds top_p;
    - min_p keeps it if w >= min_p, the largest weight being 1.
    Tokens of equal weight share their fate, so that top_k and top_p may keep more than asked for.

    The draw is a function of (seed, position) and of the row's own logits: neither neighbours nor
    the number of rows enter into it, nor does the backend. Where logits are rounded differently, by
    a share e of a weight, about e draws fall otherwise: one in a million in float32.

    `valid` is false for a row with a NaN, a +inf or no finite logit; its token id means nothing.
    """
    _check_logits(logits)
    rows = logits.shape[0]
    for name, array in sampling._asdict().items():
        shape = (rows, 2) if name == "seed" else (rows,)
        if array.shape != shape:
            raise ValueError(f"{name} must be {shape}, not {array.shape}")
    return choose(backend, DRAW_BACKENDS)(logits, sampling)


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
    backend: str = "xla",
) -> jax.Array:
    """Logits after bias, penalties and held-back tokens, in this order; float32 [rows, vocab].

    - bias_values [rows, biases] are added at bias_ids [rows, biases] (ids of `vocab` and above are
      padding);
    - a token seen in the prompt (prompt_seen bool [rows, vocab]) or in the output has its logit
      divided by repetition_penalty [rows] if positive, multiplied if negative (Keskar et al.,
      arXiv 1909.05858, section 4.1, with the sign rule that has become usual);
    - a token in the output (output_counts int32 [rows, vocab]) loses frequency_penalty [rows] per
      occurrence and presence_penalty [rows] once, as OpenAI defines them;
    - where hold_back bool [rows] is set, end_ids [rows, ends] (padded alike) become -inf.

    Penalties of 0 and 1 (repetition) leave a row's logits as they are, bit by bit.
    """
    _check_logits(logits)
    for name, counts in (("output_counts", output_counts), ("prompt_seen", prompt_seen)):
        if counts.shape != logits.shape:
            raise ValueError(f"{name} must be {logits.shape}, not {counts.shape}")
    return choose(backend, ADJUST_BACKENDS)(
        logits,
        bias_ids=bias_ids,
        bias_values=bias_values,
        end_ids=end_ids,
        hold_back=hold_back,
        output_counts=output_counts,
        prompt_seen=prompt_seen,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
    )


def log_probabilities(
    logits: jax.Array, token_ids: jax.Array, *, num_top: int = 20, backend: str = "xla"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Natural log-probabilities at temperature 1 of float32 logits [rows, vocab].

    Returns that of token_ids [rows], float32 [rows]; then the num_top most likely ids, int32
    [rows, num_top], best first and of equal ones the lowest id first, and theirs, float32
    [rows, num_top]. An impossible token has -inf; its place in the order means nothing.
    """
    _check_logits(logits)
    rows, vocab = logits.shape
    if token_ids.shape != (rows,):
        raise ValueError(f"token_ids must be ({rows},), not {token_ids.shape}")
    if not 1 <= num_top <= vocab:
        raise ValueError(f"num_top must be between 1 and {vocab}, not {num_top}")
    return choose(backend, LOGPROB_BACKENDS)(logits, token_ids, num_top=num_top)


def _check_logits(logits: jax.Array) -> None:
    if logits.ndim != 2 or logits.dtype != jnp.float32:
        raise ValueError(
            f"logits must be float32 [rows, vocab], not {logits.dtype}{list(logits.shape)}"
        )
