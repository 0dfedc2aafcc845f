"""Decode attention: the public function."""

from __future__ import annotations

import functools

import jax
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.backends import choose
from pallas_kernels.paged_decode import tpu, triton, xla
from pallas_kernels.paged_decode.shared_prefixes import SharedPrefixes
from pallas_kernels.paged_inputs import (
    check_int32,
    check_options,
    check_pages,
    check_queries,
    check_rows,
    placed_pages,
)

BACKENDS = {
    "tpu": tpu.paged_decode,
    # On any device, slowly: for tests.
    "tpu-interpret": functools.partial(tpu.paged_decode, interpret=pltpu.InterpretParams()),
    "triton": triton.paged_decode,
    "triton-interpret": functools.partial(triton.paged_decode, interpret=True),
    "xla": xla.paged_decode,
}

SHARING = ("triton", "triton-interpret")
"""Those that make use of shared prefixes."""


# Traced once for all layers of a model.
@functools.partial(jax.jit, static_argnames=("scale", "soft_cap", "window", "backend"))
def paged_decode(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    first_page: jax.Array | None = None,
    shared: SharedPrefixes | None = None,
    backend: str = "xla",
) -> jax.Array:
    """Softmax attention of one query per row over the row's cached tokens.

    q [rows, q_heads, head_dim]; k_pages, v_pages [pages, page_size, kv_heads, head_dim]; page_table
    int32 [rows, max_pages]; kv_len int32 [rows]. Returns [rows, q_heads, head_dim] in q's dtype.

    Computed in float32, but that "triton" and "tpu" round keys, values and the weights of the
    softmax to q's dtype before they multiply them.

    Token t of row r lies at `pages[page_table[r, t // page_size], t % page_size]`, and the query is
    the row's last token: it sees t < kv_len[r], the last `window` of them if a window is given.
    Query head h reads kv head h // (q_heads // kv_heads). Scores are `scale * q·k`, squashed to
    `soft_cap * tanh(score / soft_cap)` if a cap is given. Rows of length 0 yield 0. Nothing beyond
    a row's length can reach an output: neither page-table entries nor page contents, NaN included.
    Work follows the lengths in use, not max_pages.

    `first_page`, int32 [], is added to what the page table says: a layer's pages begin there where
    those of several layers lie one behind another.

    `shared` says which rows begin with the same pages. It changes nothing but the time: "triton"
    reads what is shared once per pack. It does not go with a window.

    Raises ValueError for shapes and dtypes that do not fit, for an unknown backend, and where
    "triton" is asked for a head_dim below 16 or above 256, or "tpu" for one that 128 does not
    divide.
    """
    check_pages(k_pages, v_pages)
    check_queries(q, k_pages)
    check_rows(page_table, kv_len)
    check_options(soft_cap, window)
    if q.shape[0] != page_table.shape[0]:
        raise ValueError(f"q has {q.shape[0]} rows, page_table {page_table.shape[0]}")
    page_table, options = placed_pages(page_table, first_page, backend)
    options |= {"scale": scale, "soft_cap": soft_cap, "window": window}
    if shared is not None:
        check_int32("shared_len", shared.shared_len, len(shared.shared_len))
        check_int32("pack_start", shared.pack_start, len(shared.shared_len) + 1)
        if window is not None:
            raise ValueError("shared prefixes do not go with a window")
        if backend in SHARING:
            options["shared"] = shared
    return choose(backend, BACKENDS)(q, k_pages, v_pages, page_table, kv_len, **options)
