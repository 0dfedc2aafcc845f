"""What the attention kernels for Pallas-Triton share: the walk over a row's pages, tile by tile.

A tile is a few dozen tokens, found through the page table, so that any page size will do. Tokens
outside what a program sees are replaced by the nearest that it does see: what is loaded is always
the row's own and needs no mask, and no entry of the page table beyond the row is looked at.

The softmax is that of `online_softmax`, in powers of two, for which GPUs have an instruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.online_softmax import HIDDEN

LOG2_E = math.log2(math.e)
MIN_HEAD_DIM = 16
"""What tensor cores ask for."""
MAX_HEAD_DIM = 256
"""Beyond, a tile of keys and one of values do not fit a program's memory beside its queries."""


class Partial(NamedTuple):
    """Attention over the tiles seen so far, float32."""

    peak: jax.Array
    """[queries]: highest score, times log2(e)."""
    total: jax.Array
    """[queries]: sum of 2 ** (score - peak)."""
    weighted: jax.Array
    """[queries, head_dim]: sum of 2 ** (score - peak) * value."""


class Stretch(NamedTuple):
    """Tiles from the first up to the second."""

    begin: jax.Array
    end: jax.Array
    is_visible: Callable[[jax.Array], jax.Array]
    """From the tokens of a tile to a mask that broadcasts to [queries, tile_len]."""


@dataclass(frozen=True)
class Walk:
    """How keys are found and scored; static."""

    page_size: int
    tile_len: int
    scale: float
    soft_cap: float | None

    def tile_of(self, token: jax.Array) -> jax.Array:
        """The tile of a token that is not negative."""
        return lax.div(token, jnp.int32(self.tile_len))

    def tokens(self, tile: jax.Array) -> jax.Array:
        return tile * self.tile_len + jnp.arange(self.tile_len, dtype=jnp.int32)

    def cache_rows(
        self, page_of: Callable[[jax.Array], jax.Array], tile: jax.Array, first: Any, last: Any
    ) -> jax.Array:
        """Where a tile's tokens lie in the cache, taken as one array of tokens.

        `page_of` looks up the page table; only tokens `first` to `last` are looked up.
        """
        token = jnp.maximum(jnp.minimum(self.tokens(tile), last), first)
        page_size = jnp.int32(self.page_size)
        return page_of(lax.div(token, page_size)) * page_size + lax.rem(token, page_size)

    def attend(
        self,
        q: jax.Array,
        k_ref: Any,
        v_ref: Any,
        stretch: Stretch,
        cache_rows: Callable[[jax.Array], jax.Array],
    ) -> Partial:
        """Attention of q [queries, head_dim] over a stretch of tiles.

        k_ref and v_ref are one kv head's [tokens, head_dim], or narrower: see `padded_heads`.
        """

        def take_tile(tile: jax.Array, carry: tuple[Partial, jax.Array]) -> Any:
            seen, rows = carry
            keys = _load(k_ref, rows, q.shape[1]).astype(q.dtype)
            values = _load(v_ref, rows, q.shape[1]).astype(q.dtype)
            # Looked up one tile ahead: the compiler then sees addresses of keys and values that
            # wait for no load of their own iteration, and spends all its stages on the data.
            rows = cache_rows(tile + 1)
            scores = self._scores(dot(q, keys, trans_b=True))
            # Masking only the tiles that need it, in a loop of their own, is a fifth slower.
            scores = jnp.where(stretch.is_visible(self.tokens(tile)), scores, HIDDEN)
            peak = jnp.maximum(seen.peak, scores.max(-1))
            fade = jnp.exp2(seen.peak - peak)
            weights = jnp.exp2(scores - peak[:, None])
            total = seen.total * fade + weights.sum(-1)
            added = dot(weights.astype(q.dtype), values)
            return Partial(peak, total, seen.weighted * fade[:, None] + added), rows

        queries = q.shape[0]
        nothing = Partial(
            peak=jnp.full((queries,), HIDDEN, jnp.float32),
            total=jnp.zeros((queries,), jnp.float32),
            weighted=jnp.zeros(q.shape, jnp.float32),
        )
        carry = nothing, cache_rows(stretch.begin)
        seen, _ = lax.fori_loop(stretch.begin, stretch.end, take_tile, carry)
        return seen

    def _scores(self, products: jax.Array) -> jax.Array:
        """Scores times log2(e)."""
        if self.soft_cap is None:
            return products * (self.scale * LOG2_E)
        squashed = jnp.tanh(products * (self.scale / self.soft_cap))
        return squashed * (self.soft_cap * LOG2_E)


def _load(ref: Any, rows: jax.Array, width: int) -> jax.Array:
    """Rows of ref [tokens, head_dim], with zeros up to `width`."""
    head_dim = ref.shape[1]
    if head_dim == width:
        return ref[rows, :]
    entry = jnp.arange(width, dtype=jnp.int32)[None, :]
    inside = jnp.broadcast_to(entry < head_dim, (rows.shape[0], width))
    return plt.load(ref.at[rows[:, None], entry], mask=inside, other=jnp.zeros((), ref.dtype))


def padded_heads(q: jax.Array) -> jax.Array:
    """Queries [tokens, q_heads, head_dim] with zeros up to a power of two, which is what Triton
    loads. Queries and outputs are padded in memory, keys and values only as they are loaded."""
    head_dim = q.shape[-1]
    padding = power_of_two_from(head_dim) - head_dim
    return jnp.pad(q, ((0, 0), (0, 0), (0, padding))) if padding else q


def result(seen: Partial) -> jax.Array:
    """The attention output [queries, head_dim]; 0 for a query that saw no key."""
    return seen.weighted / jnp.where(seen.total == 0, 1.0, seen.total)[:, None]


def log_weight_of(seen: Partial) -> jax.Array:
    """log2 of what the output of `result` weighs against others, [queries]; HIDDEN for no key."""
    return seen.peak + jnp.log2(jnp.where(seen.total == 0, 1.0, seen.total))


def dot(left: jax.Array, right: jax.Array, *, trans_b: bool = False) -> jax.Array:
    """A float32 product, of float32 operands without rounding them to fewer bits."""
    return plt.dot(left, right, trans_b=trans_b, precision=lax.Precision.HIGHEST)


def as_tokens(pages: jax.Array) -> jax.Array:
    """[pages, page_size, kv_heads, head_dim] -> [tokens, kv_heads, head_dim], without a copy."""
    return pages.reshape(-1, *pages.shape[2:])


def as_vector(first_page: jax.Array | None) -> jax.Array:
    """int32 [1], as kernels take a number."""
    return jnp.zeros(1, jnp.int32) if first_page is None else first_page.reshape(1)


def one_head(pages: jax.Array, axis: int) -> pl.BlockSpec:
    """All tokens of the kv head whose number is the grid's index along `axis`."""
    tokens = pages.shape[0] * pages.shape[1]
    return pl.BlockSpec((tokens, None, pages.shape[3]), lambda *grid: (0, grid[axis], 0))


def power_of_two_from(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def is_supported(head_dim: int) -> bool:
    """Whether the Triton kernels take heads of that size."""
    return MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM


def check_supported(k_pages: jax.Array) -> None:
    """Raise ValueError for pages that the Triton kernels cannot address."""
    head_dim = k_pages.shape[3]
    if not is_supported(head_dim):
        raise ValueError(
            f"triton needs a head_dim from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, not {head_dim}"
        )
    # Offsets have 32 bits in arrays up to 4 GiB, and count elements.
    if k_pages.size > 2**31 and k_pages.size * k_pages.dtype.itemsize <= 2**32:
        raise ValueError(
            f"triton cannot address {k_pages.dtype} pages of 2 to 4 GiB, here {k_pages.shape}"
        )
