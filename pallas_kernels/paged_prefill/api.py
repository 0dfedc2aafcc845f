"""Prefill attention: the public function."""

from __future__ import annotations

import functools

import jax
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.backends import choose
from pallas_kernels.paged_inputs import (
    check_int32,
    check_options,
    check_pages,
    check_queries,
    check_rows,
    placed_pages,
)
from pallas_kernels.paged_prefill import tpu, triton, xla

BACKENDS = {
    "tpu": tpu.paged_prefill,
    # On any device, slowly: for tests.
    "tpu-interpret": functools.partial(tpu.paged_prefill, interpret=pltpu.InterpretParams()),
    "triton": triton.paged_prefill,
    "triton-interpret": functools.partial(triton.paged_prefill, interpret=True),
    "xla": xla.paged_prefill,
}


# Traced once for all layers of a model.
@functools.partial(jax.jit, static_argnames=("scale", "soft_cap", "window", "backend"))
def paged_prefill(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    q_start: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    first_page: jax.Array | None = None,
    backend: str = "xla",
) -> jax.Array:
    """Causal softmax attention of ragged rows of new tokens over the rows' cached tokens.

    q [tokens, q_heads, head_dim]; k_pages, v_pages [pages, page_size, kv_heads, head_dim];
    page_table int32 [rows, max_pages]; q_start int32 [rows + 1]; kv_len int32 [rows]. Returns
    [tokens, q_heads, head_dim] in q's dtype.

    Row r's queries are `q[q_start[r]:q_start[r + 1]]`, any number of them; the last one has
    position kv_len[r] - 1, the others come before it. Their own keys and values are in the pages
    already, so kv_len counts them. A query at position p sees tokens 0 to p, the last `window` of
    them if a window is given. Everything else is as in `paged_decode`, which this equals for rows
    of one token. Queries from q_start[-1] on are padding and yield 0.

    Raises ValueError where `paged_decode` does.
    """
    check_pages(k_pages, v_pages)
    check_queries(q, k_pages)
    check_rows(page_table, kv_len)
    check_int32("q_start", q_start, page_table.shape[0] + 1)
    check_options(soft_cap, window)
    page_table, options = placed_pages(page_table, first_page, backend)
    options |= {"scale": scale, "soft_cap": soft_cap, "window": window}
    run = choose(backend, BACKENDS)
    return run(q, k_pages, v_pages, page_table, q_start, kv_len, **options)
