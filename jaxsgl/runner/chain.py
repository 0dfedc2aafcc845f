"""Several decode steps as one program: each takes the draws of the one before, on the device.

Where devices are faster than the host tells them what to do, as several of them are with a graph
that holds collectives, a step costs what the host needs for it. A chain costs that once. The loop
is on the device, and the graph of its body is recorded once for all rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout as MemoryLayout
from numpy.typing import NDArray

from jaxsgl.models.attention import AttentionKind, ForwardBatch, KVPages
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import Model
from jaxsgl.runner.batch import NO_PAGE
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.packing import PackedInts
from jaxsgl.runner.sampler import draw_step, draw_writes
from jaxsgl.runner.slot_state import SlotState, split_state
from jaxsgl.step import LAST_TOKEN, StepPlan

DRAW_KIND = "sampled"
"""Of every row: greedy ones too, so that there is one program per size."""
CHAIN_WRITES = draw_writes(DRAW_KIND)

Weights = tuple[jax.Array, ...]


def chain_fields(bucket: Bucket) -> PackedInts:
    """Layout of what the program is told."""
    names = ("token_ids", "slot", "kv_len", "write_from", "num_draws")
    return PackedInts(dict.fromkeys(names, (bucket.num_rows,)))


def pack_chain(plan: StepPlan, fields: PackedInts, padding_slot: int) -> NDArray[np.int32]:
    """The program's vector: each row's first token, its length with that, and how many it draws.
    Padded rows draw none."""
    vector, arrays = fields.empty()
    num_rows = plan.num_rows
    num_draws = np.diff(plan.q_start)
    arrays["token_ids"][:num_rows] = plan.token_ids[plan.q_start[:-1]]
    arrays["slot"][:num_rows] = plan.slot
    arrays["slot"][num_rows:] = padding_slot
    arrays["kv_len"][:num_rows] = plan.kv_len - num_draws + 1
    arrays["write_from"][:num_rows] = plan.write_from
    arrays["num_draws"][:num_rows] = num_draws
    return vector


def drawn_in_chain(plan: StepPlan, drawn: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of the draws [rounds, padded rows] of a chain those that the plan wants, in its order."""
    num_draws = np.diff(plan.q_start)
    by_row = drawn.T[: plan.num_rows]
    return by_row[np.arange(by_row.shape[1]) < num_draws[:, None]]


def jit_chain(
    join: Callable[[Weights], Model],
    declared: Sequence[jax.ShapeDtypeStruct],
    layout: Layout,
    bucket: Bucket,
    page_size: int,
    backend: str,
    compiler_options: dict[str, Any],
) -> Any:
    """run(written, rest, weights, kv, vector) -> ((drawn int32 [rounds, rows], kv), written);
    `written` and `rest` as `split_state` splits the slots' state, `written` and kv are donated.

    `declared` are the weights' shapes and places.
    """
    fields = chain_fields(bucket)
    kind = AttentionKind("decode", backend)
    orders = [_memory_order(each) for each in declared]

    def chain(
        written: dict[str, jax.Array],
        rest: SlotState,
        weights: Weights,
        kv: KVPages,
        vector: jax.Array,
    ) -> Any:
        rows = fields.unpack(vector)
        # What a loop carries lies in the order of its shape. Shaped as they lie, matrices are
        # carried where they are; otherwise all of them would be copied for the loop.
        lying = [w.transpose(order) for w, order in zip(weights, orders, strict=True)]

        def round_of(index: jax.Array, carry: Any) -> Any:
            written, kv, drawn = carry
            state = rest._replace(**written)
            # Tied to the round, or the compiler would turn them back before the loop.
            carried, index = jax.lax.optimization_barrier((lying, index))
            turned = (w.transpose(np.argsort(o)) for w, o in zip(carried, orders, strict=True))
            model = join(tuple(turned))
            batch = _batch(rows, index, state, page_size)
            hidden, kv = model.hidden(batch, kv, kind)
            draws = rows | {"stores": index < rows["num_draws"], "position": batch.kv_len}
            new, state = draw_step(model.logits(hidden), state, draws, DRAW_KIND, backend)
            written, _ = split_state(state, CHAIN_WRITES)
            return written, kv, drawn.at[index].set(new.token_ids)

        drawn = jnp.zeros((bucket.num_rounds, bucket.num_rows), jnp.int32)
        carry = (written, kv, drawn)
        written, kv, drawn = jax.lax.fori_loop(0, bucket.num_rounds, round_of, carry)
        return (drawn, kv), written

    chain.__name__ = bucket.name
    kv_sharding = layout.sharding(None, None, "kv_heads", None)
    return jax.jit(
        chain,
        donate_argnames=("written", "kv"),
        out_shardings=((layout.sharding(), kv_sharding), layout.sharding()),
        compiler_options=compiler_options,
    )


def _batch(
    rows: dict[str, jax.Array], index: jax.Array, state: SlotState, page_size: int
) -> ForwardBatch:
    """The model's batch in the round of that index. Rows that have all their draws are padding."""
    slot, num_rows = rows["slot"], len(rows["slot"])
    goes_on = index < rows["num_draws"]
    kv_len = jnp.where(goes_on, rows["kv_len"] + index, 0)
    position = jnp.maximum(kv_len - 1, 0)
    is_given = (index == 0) & (rows["token_ids"] != LAST_TOKEN)
    writes = goes_on & (position >= rows["write_from"])
    return ForwardBatch(
        token_ids=jnp.where(is_given, rows["token_ids"], state.last_token[slot]),
        positions=position,
        write_page=jnp.where(writes, state.page_table[slot, position // page_size], NO_PAGE),
        write_offset=position % page_size,
        q_start=jnp.arange(num_rows + 1, dtype=jnp.int32),
        kv_len=kv_len,
        page_table=state.page_table[slot],
        logit_idx=jnp.arange(num_rows, dtype=jnp.int32),
    )


def _memory_order(array: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Axes from the outermost in memory to the innermost."""
    layout = array.format.layout
    return layout.major_to_minor if isinstance(layout, MemoryLayout) else tuple(range(array.ndim))
