"""The sampling program: from logits and slot state to drawn tokens and log-probabilities.

There are three ways to draw. The host knows which a step needs, so that the usual ones hold no
branches: a branch on the device makes a GPU's next step wait for this one to end.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxsgl.interface import MAX_TOP_LOGPROBS, SamplingParams
from jaxsgl.runner.draw_record import DRAW_FIELDS
from jaxsgl.runner.slot_state import SlotState
from jaxsgl.step import SAMPLE
from pallas_kernels.sampling.api import (
    SamplingArrays,
    adjust_logits,
    draw,
    greedy,
    log_probabilities,
)


class Drawn(NamedTuple):
    """What a step brings the host, per wanted logit."""

    token_ids: jax.Array
    """[logits] int32: the token drawn, or the target; INVALID where the logits were not finite."""
    logprobs: jax.Array | None
    """[logits] float32, zeros unless asked for. This and the next are of full draws alone."""
    top_ids: jax.Array | None
    """[logits, MAX_TOP_LOGPROBS] int32, zeros unless asked for."""
    top_logprobs: jax.Array | None
    """[logits, MAX_TOP_LOGPROBS] float32, zeros unless asked for."""


INVALID = -1

DrawKind = Literal["greedy", "sampled", "full"]
"""greedy: every row takes its largest logit. sampled: rows have temperatures and filters. full:
besides, logits are adjusted, tokens scored, log-probabilities returned."""
DRAW_KINDS: tuple[DrawKind, ...] = ("greedy", "sampled", "full")
"""Each can do what those before it can."""


def draw_writes(kind: DrawKind) -> tuple[str, ...]:
    """What a draw changes of the slots' state."""
    return ("last_token", "output_counts") if kind == "full" else ("last_token",)


def draw_step(
    logits: jax.Array,
    state: SlotState,
    arrays: dict[str, jax.Array],
    kind: DrawKind,
    backend: str,
) -> tuple[Drawn, SlotState]:
    """Draw or score a token per row of logits [logits, vocab]; `arrays` are `batch.draw_fields`.

    Only a full draw counts the tokens that its rows generate: others have no use for the counts.
    """
    slot = arrays["slot"]
    padding_slot = len(state.last_token) - 1
    store_slot = jnp.where(arrays["stores"] != 0, slot, padding_slot)
    draws = unpack_columns(state.draws[slot])
    if kind == "full":
        logits = _adjusted(logits, state, draws, arrays)
    if kind == "greedy":
        token_ids, valid = greedy(logits, backend=backend)
    else:
        token_ids, valid = draw(logits, _sampling(draws, arrays["position"]), backend=backend)
    logprobs = (None, None, None)
    if kind == "full":
        token_ids = jnp.where(arrays["target"] == SAMPLE, token_ids, arrays["target"])
        counts = state.output_counts.at[store_slot, token_ids].add(1)
        state = state._replace(output_counts=counts)
        logprobs = _logprobs(logits, token_ids, arrays)
    state = state._replace(last_token=state.last_token.at[store_slot].set(token_ids))
    return Drawn(jnp.where(valid, token_ids, INVALID), *logprobs), state


def _sampling(draws: dict[str, jax.Array], position: jax.Array) -> SamplingArrays:
    return SamplingArrays(
        temperature=draws["temperature"],
        top_p=draws["top_p"],
        top_k=draws["top_k"],
        min_p=draws["min_p"],
        seed=jnp.stack([draws["seed_low"], draws["seed_high"]], axis=-1),
        position=position,
    )


def _adjusted(
    logits: jax.Array, state: SlotState, draws: dict[str, jax.Array], arrays: dict[str, jax.Array]
) -> jax.Array:
    """Logits after bias, penalties and the hold-back of end tokens, where some row has any."""
    slot = arrays["slot"]
    # What is scored is there already: nothing holds it back.
    hold_back = (arrays["position"] < draws["min_len"]) & (arrays["target"] == SAMPLE)
    has_bias = draws["has_bias"] != 0
    changes = (
        hold_back
        | has_bias
        | (draws["presence_penalty"] != 0.0)
        | (draws["frequency_penalty"] != 0.0)
        | (draws["repetition_penalty"] != 1.0)
    )

    def adjust() -> jax.Array:
        return adjust_logits(
            logits,
            bias_ids=jnp.where(has_bias[:, None], state.bias_ids[slot], logits.shape[-1]),
            bias_values=state.bias_values[slot],
            end_ids=state.end_ids[slot],
            hold_back=hold_back,
            output_counts=state.output_counts[slot],
            prompt_seen=state.prompt_seen[slot],
            presence_penalty=draws["presence_penalty"],
            frequency_penalty=draws["frequency_penalty"],
            repetition_penalty=draws["repetition_penalty"],
        )

    return jax.lax.cond(jnp.any(changes), adjust, lambda: logits)


def _logprobs(
    logits: jax.Array, token_ids: jax.Array, arrays: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability of each token, ids and log-probabilities of the best; zeros unless wanted."""
    num_logits = len(token_ids)
    shape = (num_logits, MAX_TOP_LOGPROBS)
    none = (
        jnp.zeros(num_logits, jnp.float32),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
    )
    return jax.lax.cond(
        arrays["want_logprobs"] != 0,
        lambda: log_probabilities(logits, token_ids),
        lambda: none,
    )


def unpack_columns(columns: jax.Array) -> dict[str, jax.Array]:
    """DRAW_FIELDS by name, each [logits], from their bits [logits, fields]."""
    return {
        name: jax.lax.bitcast_convert_type(columns[:, index], dtype)
        for index, (name, dtype) in enumerate(DRAW_FIELDS.items())
    }


def draw_kind(sampling: SamplingParams) -> DrawKind:
    """What a request needs whose log-probabilities nobody asks for."""
    if sampling.adjusts_logits:
        return "full"
    return "sampled" if sampling.temperature > 0 else "greedy"
