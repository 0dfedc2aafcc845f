"""From a plan to the vectors that programs are told a step by, and back to arrays in there.

The host sends what only it knows; what follows from that and from the slots' state is computed on
the device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.attention import ForwardBatch
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.packing import PackedInts
from jaxsgl.runner.slot_state import SlotState
from jaxsgl.step import LAST_TOKEN, SAMPLE, StepPlan
from pallas_kernels.paged_decode.shared_prefixes import SharedPrefixes, max_packs

NO_PAGE = -1
"""Where padding writes: nowhere."""


def forward_fields(bucket: Bucket) -> PackedInts:
    """Layout of what the forward program is told."""
    rows = (bucket.num_rows,)
    shapes = {"token_ids": (bucket.num_tokens,), "slot": rows, "kv_len": rows, "write_from": rows}
    if bucket.mode == "mixed":
        shapes |= {"q_start": (bucket.num_rows + 1,), "logit_idx": (bucket.num_logits,)}
    if bucket.mode == "shared":
        num_packs = max_packs(bucket.num_rows)
        shapes |= {"pack_start": (num_packs + 1,), "shared_len": (num_packs,)}
    return PackedInts(shapes)


def pack_forward(plan: StepPlan, fields: PackedInts, padding_slot: int) -> NDArray[np.int32]:
    """The forward program's vector. Padded rows have no tokens."""
    vector, arrays = fields.empty()
    num_rows = plan.num_rows
    arrays["token_ids"][: plan.num_tokens] = plan.token_ids
    arrays["slot"][:num_rows] = plan.slot
    arrays["slot"][num_rows:] = padding_slot
    arrays["kv_len"][:num_rows] = plan.kv_len
    arrays["write_from"][:num_rows] = plan.write_from
    if "q_start" in arrays:
        arrays["q_start"][: num_rows + 1] = plan.q_start
        arrays["q_start"][num_rows + 1 :] = plan.num_tokens
        arrays["logit_idx"][: len(plan.logit_idx)] = plan.logit_idx
    if "pack_start" in arrays and plan.packs is not None:
        num_packs = len(plan.packs.shared_len)
        arrays["pack_start"][: num_packs + 1] = plan.packs.start
        arrays["pack_start"][num_packs + 1 :] = num_rows
        arrays["shared_len"][:num_packs] = plan.packs.shared_len
    return vector


def unpack_forward(
    bucket: Bucket, vector: jax.Array, state: SlotState, page_size: int
) -> ForwardBatch:
    """The model's batch, inside the forward program."""
    arrays = forward_fields(bucket).unpack(vector)
    slot, kv_len = arrays["slot"], arrays["kv_len"]
    token = jnp.arange(len(arrays["token_ids"]), dtype=jnp.int32)
    if "q_start" in arrays:
        q_start, logit_idx = arrays["q_start"], arrays["logit_idx"]
        row = (token[:, None] >= q_start[None, 1:]).sum(-1)
        row = jnp.minimum(row, len(slot) - 1)
        # The last token of a row sits at kv_len - 1, those before it count down from there.
        position = token + (kv_len - q_start[1:])[row]
        exists = token < q_start[-1]
    else:
        q_start, row = jnp.arange(len(slot) + 1, dtype=jnp.int32), token
        logit_idx = jnp.minimum(jnp.arange(bucket.num_logits, dtype=jnp.int32), len(slot) - 1)
        position = kv_len - 1
        exists = kv_len > 0
    position = jnp.where(exists, position, 0)
    shared = None
    if "pack_start" in arrays:
        shared = SharedPrefixes(arrays["pack_start"], arrays["shared_len"])
    given = arrays["token_ids"]
    page = state.page_table[slot[row], position // page_size]
    return ForwardBatch(
        token_ids=jnp.where(given == LAST_TOKEN, state.last_token[slot[row]], given),
        positions=position,
        write_page=jnp.where(exists & (position >= arrays["write_from"][row]), page, NO_PAGE),
        write_offset=position % page_size,
        q_start=q_start,
        kv_len=kv_len,
        page_table=state.page_table[slot],
        logit_idx=logit_idx,
        shared=shared,
    )


def draw_fields(num_logits: int) -> PackedInts:
    """Layout of what the sampling program is told."""
    logits = (num_logits,)
    shapes = dict.fromkeys(("target", "slot", "stores", "position"), logits)
    return PackedInts(shapes | {"want_logprobs": ()})


def pack_draw(
    plan: StepPlan,
    fields: PackedInts,
    padding_slot: int,
    skipped: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """The sampling program's vector. Padding draws greedily and stores nothing; nor do the logits
    that are `skipped` [logits] store what they draw."""
    vector, arrays = fields.empty()
    wanted = len(plan.logit_idx)
    row_of_logit = np.repeat(np.arange(plan.num_rows), np.diff(plan.logit_start))
    is_last = np.zeros(wanted, np.bool_)
    is_last[plan.logit_start[1:][np.diff(plan.logit_start) > 0] - 1] = True

    arrays["target"][:wanted] = plan.logit_target
    arrays["target"][wanted:] = SAMPLE
    arrays["slot"][:wanted] = plan.slot[row_of_logit]
    arrays["slot"][wanted:] = padding_slot
    stores = is_last & (plan.logit_target == SAMPLE)
    arrays["stores"][:wanted] = stores if skipped is None else stores & ~skipped
    # Position of the token to be drawn, one after the token whose logits these are.
    arrays["position"][:wanted] = (
        plan.logit_idx + (plan.kv_len - plan.q_start[1:])[row_of_logit] + 1
    )
    arrays["want_logprobs"][...] = plan.num_top_logprobs is not None
    return vector
