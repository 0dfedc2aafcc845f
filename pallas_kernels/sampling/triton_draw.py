"""Drawing a token per row for Pallas-Triton: one pass over the logits, and little after it.

The same attempts as in `xla_draw`, with the same random numbers, so that both draw alike up to the
rounding of sums. A first kernel leaves a maximum and a sum of weights per block of the vocabulary:
enough for greedy rows, and for the first attempt of a row that no top_k holds back. A second
kernel, of one program per row, judges and repeats attempts. All it asks is what weighs more than
some pivot, and that lies in blocks whose maximum does: no others are looked at, a few dozen where
top_k is small or the distribution peaked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.sampling.blocks import BLOCK_LEN
from pallas_kernels.sampling.random_numbers import Key, race, row_keys
from pallas_kernels.sampling.triton_blocks import Blocks, summarise

if TYPE_CHECKING:
    from pallas_kernels.sampling.api import SamplingArrays

MAX_ATTEMPTS = 64
"""Every rejected token takes with it a share of the weight above what is kept that is uniform in
[0, 1], so their number is at most Poisson distributed with mean log(weight of all / of the kept),
which is at most log(vocabulary) = 12. More than 63 rejections: once in 10^24 draws."""

VISIT_BLOCKS = 64
NUM_WARPS = 8


def greedy(logits: jax.Array, *, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """See `api.greedy`."""
    blocks = summarise(logits, jnp.ones(len(logits), jnp.float32), interpret=interpret)
    top, best = _best(blocks)
    return best, jnp.isfinite(top)


def draw(
    logits: jax.Array, sampling: SamplingArrays, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """See `api.draw`. Without branches: those would make a GPU's host wait."""
    temperature = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
    blocks = summarise(logits, temperature, interpret=interpret)
    top, best = _best(blocks)
    valid = jnp.isfinite(top)
    key = row_keys(sampling)
    per_row = (
        jnp.where(valid, sampling.temperature, 0.0),
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        top,
        best,
        key.low,
        key.high,
        blocks.maxima,
        blocks.sums,
        logits,
    )
    return _sample(per_row, interpret=interpret), valid


def _best(blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """The largest logit of each row and its token."""
    best_block = jnp.argmax(blocks.maxima, -1)[:, None]
    best = jnp.take_along_axis(blocks.best, best_block, axis=1)[:, 0]
    return blocks.maxima.max(-1), best


def _sample(per_row: tuple[jax.Array, ...], *, interpret: bool) -> jax.Array:
    """Token ids [rows]; the arguments are those of `_sample_row`, with rows in front."""
    rows, num_blocks = per_row[-2].shape
    padded_blocks = pl.next_power_of_2(num_blocks)

    def one_row(array: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, *array.shape[1:]), lambda row: (row,) + (0,) * (array.ndim - 1))

    out_shape = (
        jax.ShapeDtypeStruct((rows,), jnp.int32),
        jax.ShapeDtypeStruct((rows, padded_blocks), jnp.int32),
    )
    # The interpreter runs a program as one thread, and knows no barriers.
    barrier = (lambda: None) if interpret else plt.debug_barrier
    token, _ = pl.pallas_call(
        functools.partial(_sample_row, barrier=barrier),
        grid=(rows,),
        in_specs=[one_row(array) for array in per_row],
        out_specs=tuple(one_row(array) for array in out_shape),
        out_shape=out_shape,
        compiler_params=plt.CompilerParams(NUM_WARPS, num_stages=1),
        interpret=interpret,
        name="sample",
    )(*per_row)
    return token


class _Pivot(NamedTuple):
    """What tokens are above: greater in both, scalars.

    Weights are computed anew for every look at a row, and compilers may round them differently in
    different places. That no token is above itself must not depend on it: hence the logit.
    """

    logit: jax.Array
    weight: jax.Array


class _Attempt(NamedTuple):
    """A token and whether it is still to be judged; scalars."""

    number: jax.Array
    """Attempts before this one."""
    token: jax.Array
    pivot: _Pivot
    pending: jax.Array
    """False where the token stands."""


def _sample_row(
    temperature_ref: Any,
    top_k_ref: Any,
    top_p_ref: Any,
    min_p_ref: Any,
    top_ref: Any,
    best_ref: Any,
    key_low_ref: Any,
    key_high_ref: Any,
    maxima_ref: Any,
    sums_ref: Any,
    logits_ref: Any,
    token_ref: Any,
    hits_ref: Any,
    *,
    barrier: Callable[[], None],
) -> None:
    """One row: scalars, maxima_ref and sums_ref [blocks], logits_ref
    [vocab], and hits_ref [padded blocks], for blocks to visit. A temperature of 0 takes the best.
    """
    best = best_ref[...]
    token_ref[...] = best

    @pl.when(temperature_ref[...] > 0)
    def _() -> None:
        top_k, top_p, min_p = top_k_ref[...], top_p_ref[...], min_p_ref[...]
        row = _Row(maxima_ref, sums_ref, logits_ref, hits_ref, temperature_ref, top_ref, barrier)
        key = Key(key_low_ref[...], key_high_ref[...])
        total = row.sums.sum()

        def attempt(blocks: jax.Array, sums: jax.Array, number: Any, floor: _Pivot) -> Any:
            """A token above the floor, and it as a pivot, from blocks and their sums."""
            number = jnp.int32(number)
            block = _fastest(race(key, 2 * number, blocks, sums), blocks)
            tokens, logits, weights = row.block(block, floor)
            speeds = race(key, 2 * number + 1, tokens, weights)
            token = _fastest(speeds, tokens)
            is_drawn = tokens == token
            return token, _Pivot(_only(is_drawn, logits), _only(is_drawn, weights))

        def above_weight(weight: Any) -> _Pivot:
            return _Pivot(jnp.float32(-jnp.inf), jnp.float32(weight))

        def first_of_all() -> Any:
            return attempt(row.all_blocks, row.sums, 0, above_weight(0))

        def first_of_top_k() -> Any:
            # The k-th largest token weighs no less than the k-th largest of the blocks' maxima,
            # give or take the rounding of weights.
            floor = above_weight(_kth_largest(row.peaks, top_k) * (1 - 2.0**-20))
            blocks, sums, _ = row.visit(floor)
            return attempt(blocks, sums, 0, floor)

        def judge(last: _Attempt) -> _Attempt:
            """Keep the token, or try again among the tokens of greater weight."""
            blocks, sums, num_above = row.visit(last.pivot)
            mass_above = sums.sum()
            by_p = (mass_above < top_p * total) | (top_p >= 1)
            by_k = (num_above < top_k) | (top_k <= 0)
            by_min = last.pivot.weight >= min_p
            # The largest weight is kept whatever the filters say.
            pending = ~((by_p & by_k & by_min) | (mass_above <= 0))
            number = last.number + 1
            token, pivot = attempt(blocks, sums, number, last.pivot)
            return _Attempt(
                number,
                jnp.where(pending, token, last.token),
                jax.tree.map(functools.partial(jnp.where, pending), pivot, last.pivot),
                pending,
            )

        has_floor = (top_k > 0) & (top_k <= maxima_ref.shape[0])
        token, pivot = lax.cond(has_floor, first_of_top_k, first_of_all)
        limited = (top_k > 0) | (top_p < 1) | (min_p > 0)
        last = lax.while_loop(
            lambda last: last.pending & (last.number < MAX_ATTEMPTS - 1),
            judge,
            _Attempt(jnp.int32(0), token, pivot, limited),
        )
        stands = ~last.pending & (last.pivot.weight > 0)
        token_ref[...] = jnp.where(stands, last.token, best)


class _Row:
    """The weights of a row, by blocks."""

    def __init__(
        self,
        maxima_ref: Any,
        sums_ref: Any,
        logits_ref: Any,
        hits_ref: Any,
        temperature_ref: Any,
        top_ref: Any,
        barrier: Callable[[], None],
    ) -> None:
        self._logits_ref, self._hits_ref, self._barrier = logits_ref, hits_ref, barrier
        self._temperature, self._top = temperature_ref[...], top_ref[...]
        self.all_blocks = jnp.arange(hits_ref.shape[0], dtype=jnp.int32)
        is_block = self.all_blocks < maxima_ref.shape[0]
        self._maxima = plt.load(maxima_ref.at[self.all_blocks], mask=is_block, other=-jnp.inf)
        self.peaks = self._weigh(self._maxima)
        """[padded blocks]: the largest weight of each."""
        sums = plt.load(sums_ref.at[self.all_blocks], mask=is_block, other=0.0)
        self.sums = sums * self.peaks
        """[padded blocks]: the weight of each."""

    def _weigh(self, logits: jax.Array) -> jax.Array:
        return jnp.exp((logits - self._top) / self._temperature)

    def _load(self, token: jax.Array, mask: Any = True) -> tuple[jax.Array, jax.Array]:
        """The logits and weights of tokens; -inf and 0 where there are none."""
        mask = mask & (token < self._logits_ref.shape[0])
        logits = plt.load(self._logits_ref.at[token], mask=mask, other=-jnp.inf)
        return logits, self._weigh(logits)

    def block(self, block: jax.Array, floor: _Pivot) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The tokens of a block, their logits, and their weights above the floor, else 0."""
        tokens = block * BLOCK_LEN + jnp.arange(BLOCK_LEN, dtype=jnp.int32)
        logits, weights = self._load(tokens)
        return tokens, logits, jnp.where(_is_above(logits, weights, floor), weights, 0.0)

    def visit(self, pivot: _Pivot) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The blocks with tokens above the pivot, ascending, and the weight of these tokens per
        block, both [padded blocks], filled up with weights of 0; and the number of these tokens."""
        is_hit = _is_above(self._maxima, self.peaks, pivot)
        rank = jnp.cumsum(jnp.where(is_hit, 1, 0))
        num_hits = rank.max()
        nowhere = self._hits_ref.shape[0]
        plt.store(
            self._hits_ref.at[jnp.where(is_hit, rank - 1, nowhere)], self.all_blocks, mask=is_hit
        )
        self._barrier()
        size = min(VISIT_BLOCKS, nowhere)
        group = jnp.arange(nowhere // size, dtype=jnp.int32)[:, None]
        lane = jnp.arange(BLOCK_LEN, dtype=jnp.int32)[None, :]

        def take(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> Any:
            sums, count = carry
            position = number * size + jnp.arange(size, dtype=jnp.int32)
            is_listed = position < num_hits
            block = plt.load(self._hits_ref.at[position], mask=is_listed, other=0)
            token = block[:, None] * BLOCK_LEN + lane
            logits, weights = self._load(token, is_listed[:, None])
            above = _is_above(logits, weights, pivot)
            sums_above = jnp.where(above, weights, 0.0).sum(1)
            sums = jnp.where(group == number, sums_above[None, :], sums)
            return sums, count + jnp.where(above, 1, 0).sum(1)

        nothing = (
            jnp.zeros((nowhere // size, size), jnp.float32),
            jnp.zeros((size,), jnp.int32),
        )
        num_groups = lax.div(num_hits + size - 1, jnp.int32(size))
        sums, count = lax.fori_loop(0, num_groups, take, nothing)
        # Only what was listed now may be read: an index out of bounds is a fault of the device.
        is_listed = self.all_blocks < num_hits
        blocks = plt.load(self._hits_ref.at[self.all_blocks], mask=is_listed, other=0)
        # Nobody may list anew while others still read.
        self._barrier()
        return blocks, sums.reshape(nowhere), count.sum()


def _kth_largest(weights: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of weights [entries] in [0, 1]; of fewer than k, 0."""
    # Floats that are not negative are ordered as their bits are; those of 1 have no bit 30.
    bits = lax.bitcast_convert_type(weights, jnp.int32)
    digit = jnp.arange(8, dtype=jnp.int32)

    def add_digit(index: jax.Array, found: jax.Array) -> jax.Array:
        tried = found + (digit << (27 - 3 * index))
        num_reached = jnp.where(bits[None, :] >= tried[:, None], 1, 0).sum(1)
        return jnp.where(num_reached >= k, tried, 0).max()

    found = lax.fori_loop(0, 10, add_digit, jnp.int32(0))
    return lax.bitcast_convert_type(found, jnp.float32)


def _is_above(logits: jax.Array, weights: jax.Array, pivot: _Pivot) -> jax.Array:
    return (logits > pivot.logit) & (weights > pivot.weight)


def _fastest(speeds: jax.Array, index: jax.Array) -> jax.Array:
    """The index [entries] of the largest speed, of equal ones the lowest."""
    return jnp.where(speeds == speeds.max(), index, jnp.iinfo(jnp.int32).max).min()


def _only(chosen: jax.Array, entries: jax.Array) -> jax.Array:
    """The one chosen entry."""
    return jnp.where(chosen, entries, 0.0).sum()
