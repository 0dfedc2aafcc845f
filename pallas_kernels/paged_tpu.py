"""What the attention kernels for Pallas-Mosaic TPU share: the walk over a row's pages, block by
block.

A block is some whole pages, all kv heads of them. A page lies in memory in one piece, so it is one
copy. The copies of the next block run while this one is computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.online_softmax import HIDDEN

LANES = 128


class Walk(NamedTuple):
    """How pages are read and scored; static."""

    page_size: int
    kv_heads: int
    block_pages: int
    scale: float
    soft_cap: float | None

    @property
    def block_len(self) -> int:
        """Tokens in a block."""
        return self.block_pages * self.page_size

    def block_of(self, token: Any) -> jax.Array:
        """The block of a token that is not negative."""
        return lax.div(token, jnp.int32(self.block_len))

    def buffers(self, pages: jax.Array) -> list[Any]:
        """Scratch of a walk: keys, values, and what tells when they are there."""
        shape = (2, self.block_pages, *pages.shape[1:])
        return [
            pltpu.VMEM(shape, pages.dtype),
            pltpu.VMEM(shape, pages.dtype),
            pltpu.SemaphoreType.DMA((2, 2)),
        ]

    def scores(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """[queries, keys]"""
        products = dot(queries, keys, contract=1) * self.scale
        if self.soft_cap is None:
            return products
        return self.soft_cap * jnp.tanh(products / self.soft_cap)


class Pages(NamedTuple):
    """One row's pages, and where their copies go."""

    walk: Walk
    page_ids: Any
    """[1, max_pages], in scalar memory."""
    last_page: jax.Array
    """Index of the last page that is read; in the place of later ones it is read again."""
    stored: tuple[Any, Any]
    """Keys and values, each [pages, page_size * kv_heads, head_dim], where the cache is."""
    copied: tuple[Any, Any]
    """Two blocks of each, see `Walk.buffers`."""
    arrivals: Any

    def each(self, first: jax.Array, end: jax.Array, see: Any) -> None:
        """Call `see(block, keys, values)` for the blocks from `first` up to `end`; keys and values
        are [block_len * kv_heads, head_dim], token by token."""

        @pl.when(first < end)
        def _() -> None:
            self._begin(first)

        def take(block: jax.Array, carry: None) -> None:
            @pl.when(block + 1 < end)
            def _() -> None:
                self._begin(block + 1)

            for copy in self._copies(block):
                copy.wait()
            slot = lax.rem(block, jnp.int32(2))
            keys, values = (copied[slot].reshape(-1, copied.shape[-1]) for copied in self.copied)
            see(block, keys, values)
            return carry

        lax.fori_loop(first, end, take, None)

    def _begin(self, block: jax.Array) -> None:
        for copy in self._copies(block):
            copy.start()

    def _copies(self, block: jax.Array) -> list[Any]:
        slot = lax.rem(block, jnp.int32(2))
        copies: list[Any] = []
        for index in range(self.walk.block_pages):
            place = jnp.minimum(block * self.walk.block_pages + index, self.last_page)
            page = self.page_ids[0, place]
            copies += [
                pltpu.make_async_copy(
                    self.stored[which].at[page],
                    self.copied[which].at[slot, index],
                    self.arrivals.at[which, slot],
                )
                for which in range(2)
            ]
        return copies


class Partial(NamedTuple):
    """Attention over the blocks seen so far, float32, in scratch."""

    peak: Any
    """[queries, 1]: highest score."""
    total: Any
    """[queries, 1]: sum of exp(score - peak)."""
    weighted: Any
    """[queries, head_dim]: sum of exp(score - peak) * value."""

    def clear(self) -> None:
        self.peak[...] = jnp.full(self.peak.shape, HIDDEN, jnp.float32)
        self.total[...] = jnp.zeros(self.total.shape, jnp.float32)
        self.weighted[...] = jnp.zeros(self.weighted.shape, jnp.float32)

    def see(self, scores: jax.Array, values: jax.Array) -> None:
        """Take in scores [queries, keys], HIDDEN where a query sees no key, and values
        [keys, head_dim], finite."""
        before = self.peak[...]
        peak = jnp.maximum(before, scores.max(-1, keepdims=True))
        fade = jnp.exp(before - peak)
        weights = jnp.where(scores > HIDDEN, jnp.exp(scores - peak), 0.0)
        self.peak[...] = peak
        self.total[...] = self.total[...] * fade + weights.sum(-1, keepdims=True)
        added = dot(weights.astype(values.dtype), values, contract=0)
        self.weighted[...] = self.weighted[...] * fade + added

    def result(self) -> jax.Array:
        """[queries, head_dim]; 0 for a query that saw no key."""
        total = self.total[...]
        return self.weighted[...] / jnp.where(total == 0, 1.0, total)


def partial_buffers(*shape: int, head_dim: int) -> list[Any]:
    """Scratch of a Partial of so many queries."""
    return [
        pltpu.VMEM((*shape, 1), jnp.float32),
        pltpu.VMEM((*shape, 1), jnp.float32),
        pltpu.VMEM((*shape, head_dim), jnp.float32),
    ]


def dot(left: jax.Array, right: jax.Array, contract: int) -> jax.Array:
    """A float32 product over the last axis of `left` and axis `contract` of `right`; of float32
    operands without rounding them to fewer bits."""
    exact = left.dtype == jnp.float32
    return lax.dot_general(
        left,
        right,
        (((1,), (contract,)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def as_rows(pages: jax.Array) -> jax.Array:
    """[pages, page_size, kv_heads, head_dim] -> [pages, page_size * kv_heads, head_dim]."""
    return pages.reshape(pages.shape[0], -1, pages.shape[3])


def check_supported(k_pages: jax.Array) -> None:
    """Raise ValueError for pages that the TPU kernels cannot copy."""
    head_dim = k_pages.shape[3]
    if head_dim % LANES:
        raise ValueError(f"tpu needs a head_dim that {LANES} divides, not {head_dim}")
    if k_pages.dtype.itemsize * k_pages.shape[1] * k_pages.shape[2] % 32:
        raise ValueError(f"tpu needs pages of whole tiles, not {k_pages.dtype}{k_pages.shape}")
