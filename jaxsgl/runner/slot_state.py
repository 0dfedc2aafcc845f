"""The device's side of every slot: what lives there from step to step besides KV pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.sharding import Layout
from jaxsgl.runner.draw_record import NEUTRAL_DRAW, as_ints
from jaxsgl.runner.packing import PackedInts
from jaxsgl.step import SCRATCH_PAGE, SlotOpening, StepLimits

MAX_LOGIT_BIAS = 1024
"""Biased tokens per request; `interface.check_sampling` refuses more."""
MAX_END_IDS = 64
"""End tokens per request that `min_tokens` can hold back."""


class SlotState(NamedTuple):
    """Arrays by slot; the last slot belongs to padding. Whole on every device.

    All from `output_counts` on are set when a request opens that has a use for them, and are stale
    garbage for the others, whose draws never read them.
    """

    last_token: jax.Array
    """[slots + 1] int32: the token drawn last."""
    page_table: jax.Array
    """[slots + 1, max_pages_per_row] int32: entries beyond what a request holds are stale."""
    draws: jax.Array
    """[slots + 1, DRAW_FIELDS] int32: bits of the slots' draw records."""
    output_counts: jax.Array
    """[slots + 1, vocab] int32: how often each token was generated."""
    prompt_seen: jax.Array
    """[slots + 1, vocab] bool: which tokens are in the prompt."""
    bias_ids: jax.Array
    """[slots + 1, MAX_LOGIT_BIAS] int32, padded with vocab_size."""
    bias_values: jax.Array
    """[slots + 1, MAX_LOGIT_BIAS] float32."""
    end_ids: jax.Array
    """[slots + 1, MAX_END_IDS] int32, padded with vocab_size."""


def split_state(state: SlotState, names: Sequence[str]) -> tuple[dict[str, jax.Array], SlotState]:
    """The arrays of these names, and the state with None in their places."""
    taken = {name: getattr(state, name) for name in names}
    return taken, state._replace(**dict.fromkeys(names))


def state_allocator(layout: Layout, limits: StepLimits) -> Callable[[], SlotState]:
    """A compiled function that returns the state of slots that nobody has opened."""
    slots, vocab = limits.num_slots + 1, limits.vocab_size

    def allocate_slots() -> SlotState:
        return SlotState(
            last_token=jnp.zeros(slots, jnp.int32),
            page_table=jnp.full((slots, limits.max_pages_per_row), SCRATCH_PAGE, jnp.int32),
            draws=jnp.tile(as_ints(NEUTRAL_DRAW), (slots, 1)),
            output_counts=jnp.zeros((slots, vocab), jnp.int32),
            prompt_seen=jnp.zeros((slots, vocab), jnp.bool),
            bias_ids=jnp.full((slots, MAX_LOGIT_BIAS), vocab, jnp.int32),
            bias_values=jnp.zeros((slots, MAX_LOGIT_BIAS), jnp.float32),
            end_ids=jnp.full((slots, MAX_END_IDS), vocab, jnp.int32),
        )

    return jax.jit(allocate_slots, out_shardings=layout.sharding())


def opening_fields(vocab_size: int) -> PackedInts:
    """Layout of what the opening program is told."""
    return PackedInts(
        {
            "slot": (),
            "output_counts": (vocab_size,),
            "prompt_seen": (vocab_size,),
            "bias_ids": (MAX_LOGIT_BIAS,),
            "bias_values": (MAX_LOGIT_BIAS,),
            "end_ids": (MAX_END_IDS,),
        }
    )


def pack_opening(opening: SlotOpening, fields: PackedInts, vocab_size: int) -> NDArray[np.int32]:
    """The opening program's vector. Raises ValueError for more end tokens than there is room
    for."""
    vector, arrays = fields.empty()
    prompt, generated = np.split(opening.token_ids, [opening.prompt_len])
    arrays["slot"][...] = opening.slot
    arrays["output_counts"][:] = np.bincount(generated, minlength=vocab_size)
    arrays["prompt_seen"][prompt] = 1
    bias = opening.sampling.logit_bias
    arrays["bias_ids"][:] = vocab_size
    arrays["bias_ids"][: len(bias)] = list(bias)
    arrays["bias_values"].view(np.float32)[: len(bias)] = list(bias.values())
    end_ids = opening.end_token_ids
    if len(end_ids) > MAX_END_IDS:
        raise ValueError(f"{len(end_ids)} end tokens; there is room for {MAX_END_IDS}")
    arrays["end_ids"][:] = vocab_size
    arrays["end_ids"][: len(end_ids)] = end_ids
    return vector


OPENING_WRITES = ("output_counts", "prompt_seen", "bias_ids", "bias_values", "end_ids")


def open_slot(state: SlotState, arrays: dict[str, jax.Array]) -> SlotState:
    """Set a slot's arrays from `opening_fields`, inside a compiled program."""
    slot = arrays["slot"]
    return state._replace(
        output_counts=state.output_counts.at[slot].set(arrays["output_counts"]),
        prompt_seen=state.prompt_seen.at[slot].set(arrays["prompt_seen"] != 0),
        bias_ids=state.bias_ids.at[slot].set(arrays["bias_ids"]),
        bias_values=state.bias_values.at[slot].set(
            jax.lax.bitcast_convert_type(arrays["bias_values"], jnp.float32)
        ),
        end_ids=state.end_ids.at[slot].set(arrays["end_ids"]),
    )
