"""Attention over the paged KV cache: the one place where the model calls kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxsgl.models.sharding import Layout
from pallas_kernels.kv_write.api import kv_write, page_write
from pallas_kernels.paged_decode.api import paged_decode
from pallas_kernels.paged_decode.shared_prefixes import SharedPrefixes
from pallas_kernels.paged_prefill.api import paged_prefill

Mode = Literal["decode", "shared", "mixed"]


class AttentionKind(NamedTuple):
    """Which attention a program computes, and with what."""

    mode: Mode
    """In "decode" and "shared" every row has exactly one token; in "shared", packs of rows begin
    with the same pages."""
    backend: str
    """A name that `pallas_kernels` knows."""


KVPages = tuple[jax.Array, ...]
"""Keys and values of all layers, each [layers * pages, page_size, kv_heads, head_dim]: a page has a
place in every layer, one layer's behind another's. With latent attention there are the latents
alone, which are both. Two arrays and not two per layer, because a host pays for every array that it
hands to a program, and ten times as much for one that comes back."""


class AttentionOptions(NamedTuple):
    """How one layer attends; static."""

    scale: float
    """Of the scores."""
    window: int | None = None
    """How many tokens a token sees, itself included; None is all."""
    soft_cap: float | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardBatch:
    """What one step asks of the model, padded. All arrays are int32.

    Padded tokens write to a page that does not exist, padded rows have kv_len 0: neither changes
    anything.
    """

    token_ids: jax.Array
    """[tokens]"""
    positions: jax.Array
    """[tokens]"""
    write_page: jax.Array
    """[tokens]: page that takes the token's key and value; -1 for none."""
    write_offset: jax.Array
    """[tokens]: place in that page."""
    q_start: jax.Array
    """[rows + 1]: row r's tokens are q_start[r] to q_start[r + 1]."""
    kv_len: jax.Array
    """[rows]: keys of the row, those of this step included."""
    page_table: jax.Array
    """[rows, max_pages]"""
    logit_idx: jax.Array
    """[logits]: tokens whose logits are wanted."""
    shared: SharedPrefixes | None = None
    """In "shared" alone."""


def attend(
    q: jax.Array,
    new: tuple[jax.Array, ...],
    pages: KVPages,
    first_page: jax.Array,
    batch: ForwardBatch,
    kind: AttentionKind,
    layout: Layout,
    options: AttentionOptions,
) -> tuple[jax.Array, KVPages]:
    """Write what is new to its pages, then let each token see its row up to itself.

    q is [tokens, q_heads, head_dim]; `new` has one array [tokens, kv_heads, head_dim] for each of
    the pages': keys and values, or latents. The layer's pages begin at `first_page`, int32 [].
    Returns attention's output, shaped like q, and the pages.
    """
    local = functools.partial(_attend_on_one_device, kind=kind, options=options)
    if layout.mesh.size == 1:
        return local(q, new, pages, first_page, batch)
    # The partitioner cannot look into a kernel: heads are dealt out to the devices by hand.
    q_spec = layout.spec(None, "q_heads", None)
    new_spec = layout.spec(None, "kv_heads", None)
    pages_spec = layout.spec(None, None, "kv_heads", None)
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(q_spec, new_spec, pages_spec, PartitionSpec(), PartitionSpec()),
        out_specs=(q_spec, pages_spec),
        check_vma=False,
    )(q, new, pages, first_page, batch)


def _attend_on_one_device(
    q: jax.Array,
    new: tuple[jax.Array, ...],
    pages: KVPages,
    first_page: jax.Array,
    batch: ForwardBatch,
    *,
    kind: AttentionKind,
    options: AttentionOptions,
) -> tuple[jax.Array, KVPages]:
    write_page = jnp.where(batch.write_page < 0, batch.write_page, batch.write_page + first_page)
    places = write_page, batch.write_offset
    if len(pages) == 1:
        pages = (page_write(*pages, *new, *places),)
    else:
        pages = kv_write(*pages, *new, *places)
    keys, values = pages[0], pages[-1]
    table, kv_len = batch.page_table, batch.kv_len
    how: dict[str, Any] = {
        **options._asdict(),
        "first_page": first_page,
        "backend": kind.backend,
    }
    if kind.mode == "mixed":
        out = paged_prefill(q, keys, values, table, batch.q_start, kv_len, **how)
    else:
        # A window does not reach back to what rows share.
        shared = None if options.window else batch.shared
        out = paged_decode(q, keys, values, table, kv_len, shared=shared, **how)
    return out, pages
