"""Drawing tokens, adjusting logits and log-probabilities against references that sort."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from numpy.typing import NDArray

from pallas_kernels.sampling import cases, reference, xla_draw
from pallas_kernels.sampling.api import (
    SamplingArrays,
    adjust_logits,
    draw,
    greedy,
    log_probabilities,
)
from pallas_kernels.sampling.blocks import in_blocks
from pallas_kernels.sampling.random_numbers import Key, race, threefry
from tests.kernels.op_suite import Interpreted, OnGpu, ids

SMALL = tuple(case for case in cases.CASES if case.vocab < 1000)
SAMPLED = tuple(case for case in cases.CASES if case.temperature > 0)
jit_draw = jax.jit(draw, static_argnames="backend")
jit_greedy = jax.jit(greedy, static_argnames="backend")


def arrays(
    rows: int,
    *,
    temperature: float = 1.0,
    top_k: int = -1,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    position: int | NDArray[np.int32] = 0,
) -> SamplingArrays:
    """The same settings for every row."""
    return SamplingArrays(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        top_k=jnp.full(rows, top_k, jnp.int32),
        min_p=jnp.full(rows, min_p, jnp.float32),
        seed=jnp.tile(jnp.array([[seed, 7]], jnp.uint32), (rows, 1)),
        position=jnp.broadcast_to(jnp.asarray(position, jnp.int32), rows),
    )


def row(sampling: SamplingArrays, index: int) -> SamplingArrays:
    return jax.tree.map(lambda x: x[index : index + 1], sampling)


def chi_square(token_ids: NDArray[np.int32], probabilities: NDArray[np.float64]) -> float:
    """How far the counts are from the probabilities, in standard deviations.

    Pearson's statistic over tokens expected five times or more, the others taken together, made
    normal by the cube root of Wilson and Hilferty.
    """
    expected = probabilities * len(token_ids)
    counts = np.bincount(token_ids, minlength=len(expected))
    usual = expected >= 5
    expected = np.append(expected[usual], expected[~usual].sum())
    counts = np.append(counts[usual], counts[~usual].sum())
    if expected[-1] < 5:
        assert counts[-1] <= 25, "tokens that are next to impossible were drawn"
        expected, counts = expected[:-1], counts[:-1]
    freedom = len(expected) - 1
    if freedom == 0:
        return 0.0
    mean = (np.sum((counts - expected) ** 2 / expected) / freedom) ** (1 / 3)
    spread = 2 / (9 * freedom)
    return float((mean - (1 - spread)) / np.sqrt(spread))


DRAWS_AT_ONCE = 250
"""The interpreter's time per row grows with their number."""
FAR = 5.0
"""One fair experiment in three million is further off than this."""


@functools.cache
def many_draws(case: cases.Case, backend: str, num_draws: int) -> NDArray[np.int32]:
    """Draws at positions 0, 1, 2, ... from one row."""
    logits = cases.make_logits(case)
    tiled = jnp.broadcast_to(logits, (DRAWS_AT_ONCE, case.vocab))
    drawn: list[NDArray[np.int32]] = []
    for first in range(0, num_draws if case.vocab < 1000 else DRAWS_AT_ONCE, DRAWS_AT_ONCE):
        position = np.arange(first, first + DRAWS_AT_ONCE, dtype=np.int32)
        sampling = arrays(DRAWS_AT_ONCE, position=position, **case.options)
        token_ids, valid = jit_draw(tiled, sampling, backend=backend)
        assert np.all(valid)
        drawn.append(np.asarray(token_ids))
    return np.concatenate(drawn)


class DrawSuite:
    backend: ClassVar[str]
    num_draws: ClassVar[int] = 20000
    told_apart: ClassVar[tuple[dict[str, float], ...]] = (
        {"temperature": 1.15},
        {"top_k": 250},
        {"top_p": 0.98},
        {"min_p": 0.05},
    )
    """What so many draws with no filter and temperature 1 must be seen not to be."""

    def many_draws(self, case: cases.Case) -> NDArray[np.int32]:
        return many_draws(case, self.backend, self.num_draws)

    def draw(self, logits: Any, sampling: SamplingArrays) -> tuple[jax.Array, jax.Array]:
        return jit_draw(logits, sampling, backend=self.backend)

    @ids(cases.CASES)
    def test_only_kept_tokens_are_drawn(self, case: cases.Case) -> None:
        probabilities = reference.distribution(cases.make_logits(case), **case.options)
        assert np.all(probabilities[self.many_draws(case)] > 0)

    @ids(tuple(case for case in SAMPLED if case.vocab < 1000))
    def test_draws_follow_the_distribution(self, case: cases.Case) -> None:
        probabilities = reference.distribution(cases.make_logits(case), **case.options)
        assert chi_square(self.many_draws(case), probabilities) < FAR

    def test_the_distribution_test_rejects_others(self) -> None:
        case = next(case for case in cases.CASES if case.name == "everything")
        logits = cases.make_logits(case)
        for wrong in self.told_apart:
            probabilities = reference.distribution(logits, **{**case.options, **wrong})
            with pytest.raises(AssertionError):
                assert chi_square(self.many_draws(case), probabilities) < FAR

    def test_a_row_is_drawn_alike_alone_and_among_others(self) -> None:
        rng = np.random.default_rng(1)
        logits = rng.standard_normal((16, 5000), np.float32) * 2
        logits[3] = np.nan
        sampling = SamplingArrays(
            temperature=jnp.asarray(rng.choice([0.0, 0.7, 1.0, 1.5], 16), jnp.float32),
            top_p=jnp.asarray(rng.choice([0.5, 0.9, 1.0], 16), jnp.float32),
            top_k=jnp.asarray(rng.choice([-1, 5, 400], 16), jnp.int32),
            min_p=jnp.asarray(rng.choice([0.0, 0.01], 16), jnp.float32),
            seed=jnp.asarray(rng.integers(0, 2**32, (16, 2)), jnp.uint32),
            position=jnp.asarray(rng.integers(0, 9000, 16), jnp.int32),
        )
        together = np.asarray(self.draw(logits, sampling)[0])
        other_way = jax.tree.map(lambda x: x[::-1], sampling)
        np.testing.assert_array_equal(self.draw(logits[::-1], other_way)[0][::-1], together)
        for index in range(16):
            if index != 3:
                alone, valid = self.draw(logits[index : index + 1], row(sampling, index))
                assert valid[0]
                assert alone[0] == together[index]

    def test_a_draw_depends_on_seed_and_position(self) -> None:
        logits = jnp.zeros((1, 5000), jnp.float32)

        def drawn(**options: int) -> int:
            return int(self.draw(logits, arrays(1, **options))[0][0])

        assert drawn(seed=3, position=5) == drawn(seed=3, position=5)
        assert len({drawn(seed=3, position=position) for position in range(20)}) > 15
        assert len({drawn(seed=seed, position=5) for seed in range(20)}) > 15

    def test_the_lowest_of_equal_best_tokens_is_greedy(self) -> None:
        logits = np.zeros((1, 1000), np.float32)
        logits[0, [700, 300, 301]] = 2.5
        assert self.draw(logits, arrays(1, temperature=0.0))[0][0] == 300
        assert jit_greedy(logits, backend=self.backend)[0][0] == 300

    def test_greedy_is_a_draw_at_temperature_0(self) -> None:
        logits = np.random.default_rng(7).standard_normal((6, 300), np.float32)
        logits[0, 17], logits[1, 299], logits[2], logits[4, :200] = np.nan, np.inf, -np.inf, -np.inf
        token_ids, valid = jit_greedy(logits, backend=self.backend)
        assert valid.tolist() == [False, False, False, True, True, True]
        assert token_ids[3:].tolist() == logits[3:].argmax(-1).tolist()
        drawn, _ = self.draw(logits, arrays(6, temperature=0.0))
        np.testing.assert_array_equal(drawn[3:], token_ids[3:])

    def test_faulty_rows_are_reported_and_harm_no_other(self) -> None:
        rng = np.random.default_rng(2)
        logits = rng.standard_normal((6, 300), np.float32)
        sampling = arrays(6, top_p=0.8, top_k=30, position=np.arange(6, dtype=np.int32))
        expected = np.asarray(self.draw(logits, sampling)[0])
        faulty = logits.copy()
        faulty[0, 17] = np.nan
        faulty[1, 299] = np.inf
        faulty[2] = -np.inf
        faulty[4, :200] = -np.inf
        for temperature in (1.0, 0.0):
            settings = sampling._replace(temperature=jnp.full(6, temperature, jnp.float32))
            token_ids, valid = self.draw(faulty, settings)
            assert valid.tolist() == [False, False, False, True, True, True]
            assert np.all((token_ids >= 0) & (token_ids < 300))
            assert token_ids[4] >= 200
        np.testing.assert_array_equal(
            self.draw(faulty, sampling)[0][jnp.array([3, 5])], expected[[3, 5]]
        )

    def test_filters_that_would_keep_nothing_leave_the_best(self) -> None:
        logits = np.random.default_rng(3).standard_normal((1, 300), np.float32)
        for sampling in (arrays(1, top_p=0.0), arrays(1, min_p=1.5)):
            token_ids, valid = self.draw(logits, sampling)
            assert valid[0]
            assert token_ids[0] == logits.argmax()


class TestXla(DrawSuite):
    backend = "xla"


class TestTritonInterpreted(Interpreted, DrawSuite):
    backend = "triton-interpret"
    num_draws = 5000
    told_apart = ({"temperature": 1.3}, {"top_k": 240}, {"top_p": 0.95}, {"min_p": 0.1})

    @ids(SMALL)
    def test_only_kept_tokens_are_drawn(self, case: cases.Case) -> None:
        super().test_only_kept_tokens_are_drawn(case)


@pytest.mark.gpu
class TestXlaOnGpu(OnGpu, DrawSuite):
    backend = "xla"


@pytest.mark.gpu
class TestTritonOnGpu(OnGpu, DrawSuite):
    backend = "triton"

    @pytest.mark.parametrize("sharpness", [0.3, 2.0, 6.0])
    def test_draws_of_a_large_batch_are_those_of_xla(self, sharpness: float) -> None:
        check_alike("triton", *mixed_batch(256, 128256, sharpness))


ALIKE_SHAPE = (80, 9001)


def mixed_batch(
    rows: int, vocab: int, sharpness: float
) -> tuple[NDArray[np.float32], SamplingArrays]:
    """Every mix of greedy, unfiltered and filtered rows; two of them are faulty."""
    rng = np.random.default_rng(6)
    logits = rng.standard_normal((rows, vocab), np.float32) * np.float32(sharpness)
    logits[3, vocab // 2] = np.nan
    logits[4] = -np.inf
    sampling = SamplingArrays(
        temperature=jnp.asarray(rng.choice([0.0, 0.7, 1.0, 1.5], rows), jnp.float32),
        top_p=jnp.asarray(rng.choice([0.1, 0.9, 1.0], rows), jnp.float32),
        top_k=jnp.asarray(rng.choice([-1, 5, 50, 4000], rows), jnp.int32),
        min_p=jnp.asarray(rng.choice([0.0, 0.01], rows), jnp.float32),
        seed=jnp.asarray(rng.integers(0, 2**32, (rows, 2)), jnp.uint32),
        position=jnp.asarray(rng.integers(0, 9000, rows), jnp.int32),
    )
    return logits, sampling


def check_alike(
    backend: str,
    logits: NDArray[np.float32],
    sampling: SamplingArrays,
    expected: SamplingArrays | None = None,
) -> None:
    """Every row, though sums are rounded in another order."""
    token_ids, valid = jit_draw(logits, sampling, backend=backend)
    xla_ids, xla_valid = jit_draw(logits, sampling if expected is None else expected)
    np.testing.assert_array_equal(valid, xla_valid)
    valid = np.asarray(valid)
    assert np.count_nonzero(~valid) == 2
    np.testing.assert_array_equal(np.asarray(token_ids)[valid], np.asarray(xla_ids)[valid])


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_triton_draws_what_xla_draws(sharpness: float) -> None:
    """Over more blocks than are summarised, or looked at, at once."""
    check_alike("triton-interpret", *mixed_batch(*ALIKE_SHAPE, sharpness))


def test_other_draws_are_told_apart() -> None:
    logits, sampling = mixed_batch(*ALIKE_SHAPE, 0.3)
    for other in (
        sampling._replace(position=sampling.position + 1),
        sampling._replace(top_k=sampling.top_k // 2),
        sampling._replace(top_p=sampling.top_p * 0.8),
        sampling._replace(temperature=sampling.temperature * 1.1),
    ):
        with pytest.raises(AssertionError):
            check_alike("triton-interpret", logits, sampling, expected=other)


def test_rounding_of_logits_moves_next_to_no_draw() -> None:
    """By a few units in the last place, as another number of rows moves them; 49,152 tokens.

    Each draw falls otherwise with a probability of about 1e-6, and would with one of 2e-3 if a
    cumulative sum were inverted: 8 of these 4,000.
    """
    rows, rounds = 400, 10
    rng = np.random.default_rng(8)
    row_logits = rng.standard_normal(49152, np.float32) * 3
    moved = row_logits * (1 + rng.choice([-3, -2, -1, 1, 2, 3], 49152) * np.float32(2.0**-24))
    num_moved = 0
    for first in range(0, rows * rounds, rows):
        sampling = arrays(rows, position=np.arange(first, first + rows, dtype=np.int32))
        drawn, other = (
            jit_draw(jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (rows, 49152)), sampling)[0]
            for logits in (row_logits, moved)
        )
        num_moved += int(jnp.sum(drawn != other))
        assert len(set(drawn.tolist())) > rows / 2
    assert num_moved <= 1


def test_random_numbers_are_those_of_threefry() -> None:
    rng = np.random.default_rng(9)
    key, counter = rng.integers(0, 2**32, (2, 2, 100), dtype=np.uint32)
    found = jax.jit(threefry)(Key(*jnp.asarray(key)), Key(*jnp.asarray(counter)))
    for index in range(100):
        # The reference takes the halves of its counter as first and second words.
        words = threefry_2x32(jnp.asarray(key[:, index]), jnp.asarray(counter[:, index]))
        assert [int(found.low[index]), int(found.high[index])] == words.tolist()


def test_light_entries_win_a_race_as_often_as_they_weigh() -> None:
    """Down to one in a million: a random number of few digits would draw them never, or too often.

    Control: the same counts are not those of weights a tenth off.
    """
    weights = jnp.asarray([1.0, 1e-2, 1e-4, 1e-6, 0.0], jnp.float32)
    num_races, batch = 8_000_000, 1_000_000

    @jax.jit
    def wins(first: jax.Array) -> jax.Array:
        key = Key(jnp.arange(batch, dtype=jnp.uint32)[:, None] + first, jnp.uint32(3))
        speeds = race(key, 5, jnp.arange(5, dtype=jnp.int32)[None, :], weights[None, :])
        return jnp.bincount(jnp.argmax(speeds, -1), length=5)

    counts = sum(np.asarray(wins(jnp.uint32(first))) for first in range(0, num_races, batch))
    assert counts.sum() == num_races and counts[4] == 0
    expected = np.asarray(weights[:4], np.float64) / float(weights.sum()) * num_races
    spread = np.sqrt(expected * (1 - expected / num_races))
    assert np.all(np.abs(counts[:4] - expected) < FAR * spread)
    assert np.abs(counts[1] - 1.1 * expected[1]) > FAR * spread[1]


@ids(SAMPLED)
def test_filters_keep_exactly_the_reference_set(case: cases.Case) -> None:
    """Every token is put before the filters; of large vocabularies the likeliest and a few."""
    logits = cases.make_logits(case)
    probabilities = reference.distribution(logits, **case.options)
    by_weight = np.argsort(-logits, kind="stable")
    tokens = by_weight if case.vocab < 1000 else np.append(by_weight[:900], by_weight[900::200])
    weights = in_blocks(jnp.asarray(logits)[None])
    weights = jnp.exp((weights - logits.max()) / jnp.float32(case.temperature))
    everywhere = jnp.broadcast_to(weights, (len(tokens), *weights.shape[1:]))
    sampling = arrays(len(tokens), **case.options)
    candidate = weights.reshape(-1)[tokens]
    kept, _ = jax.jit(xla_draw.is_kept)(
        everywhere, candidate, jnp.broadcast_to(weights.sum(), len(tokens)), sampling
    )
    # A weight of 0 is never drawn, whether a filter looks at it or not.
    kept = np.asarray(kept & (candidate > 0))
    np.testing.assert_array_equal(kept, probabilities[tokens] > 0)
    assert np.count_nonzero(kept) == np.count_nonzero(probabilities)


def test_the_reference_by_hand() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    plain = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0}

    def check(probabilities: list[float], **options: float) -> None:
        found = reference.distribution(logits, **{**plain, **options})  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(found, probabilities, atol=1e-6)

    check([0.1, 0.4, 0.2, 0.3])
    check([0, 1, 0, 0], temperature=0.0)
    check([0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3], temperature=0.5)
    check([0, 4 / 7, 0, 3 / 7], top_k=2)
    check([0, 4 / 7, 0, 3 / 7], top_p=0.6)
    check([0, 4 / 9, 2 / 9, 3 / 9], top_p=0.75)
    check([0, 4 / 9, 2 / 9, 3 / 9], min_p=0.45)
    # Each filter looks at the whole row: 0.4 is less than 0.5 of it.
    check([0, 4 / 7, 0, 3 / 7], top_k=3, top_p=0.5)


def test_adjusted_logits_equal_the_reference() -> None:
    rng = np.random.default_rng(4)
    rows, vocab = 4, 50
    logits = rng.standard_normal((rows, vocab), np.float32) * 3
    bias = [{3: 5.0, 49: -100.0}, {}, {0: 0.5}, {7: 1.0}]
    end_ids = [[2, 9], [4], [], [9, 11]]
    hold_back = [True, True, True, False]
    prompts = [[1, 1, 2], [3], [], [7, 8]]
    outputs = [[5, 5, 5, 1], [], [8], [9]]
    penalties = [(0.5, 0.25, 1.3), (0.0, 0.0, 1.0), (-1.0, 2.0, 0.7), (0.0, 0.0, 1.5)]

    def padded(lists: list[list[float]], padding: float, dtype: type) -> jax.Array:
        out = np.full((rows, 3), padding, dtype)
        for index, entries in enumerate(lists):
            out[index, : len(entries)] = entries
        return jnp.asarray(out)

    presence, frequency, repetition = jnp.asarray(penalties, jnp.float32).T
    counts = np.stack([np.bincount(tokens, minlength=vocab) for tokens in outputs])
    seen = np.stack([np.bincount(tokens, minlength=vocab) > 0 for tokens in prompts])
    adjusted = adjust_logits(
        jnp.asarray(logits),
        bias_ids=padded([list(entries) for entries in bias], vocab, np.int32),
        bias_values=padded([list(entries.values()) for entries in bias], 9.0, np.float32),
        end_ids=padded(end_ids, vocab, np.int32),
        hold_back=jnp.asarray(hold_back),
        output_counts=jnp.asarray(counts, jnp.int32),
        prompt_seen=jnp.asarray(seen),
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
    )
    for index in range(rows):
        expected = reference.adjust_logits(
            logits[index],
            bias=bias[index],
            held_ids=end_ids[index] if hold_back[index] else [],
            output_ids=outputs[index],
            prompt_ids=prompts[index],
            presence_penalty=penalties[index][0],
            frequency_penalty=penalties[index][1],
            repetition_penalty=penalties[index][2],
        )
        np.testing.assert_allclose(adjusted[index], expected, rtol=1e-6)
        assert np.abs(expected - logits[index])[np.isfinite(expected)].max(initial=1) > 0.1
    untouched = [token for token in range(vocab) if token != 4]
    np.testing.assert_array_equal(adjusted[1, jnp.array(untouched)], logits[1, untouched])


def test_the_adjusting_reference_by_hand() -> None:
    adjusted = reference.adjust_logits(
        np.array([2.0, -2.0, 1.0, 4.0, 0.5], np.float32),
        bias={3: -1.0},
        held_ids=[4],
        output_ids=[1, 1],
        prompt_ids=[0, 3],
        presence_penalty=0.25,
        frequency_penalty=0.5,
        repetition_penalty=2.0,
    )
    assert adjusted.tolist() == [1.0, -4.0 - 1.0 - 0.25, 1.0, 1.5, -np.inf]


@pytest.mark.parametrize("vocab", [20, 130, 5000, 20000])
def test_log_probabilities_equal_the_reference(vocab: int) -> None:
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((3, vocab), np.float32) * 4
    logits[1] = np.round(logits[1])  # many equal
    token_ids = rng.integers(0, vocab, 3).astype(np.int32)
    chosen, top_ids, top = log_probabilities(jnp.asarray(logits), jnp.asarray(token_ids))
    assert top_ids.shape == top.shape == (3, 20)
    for index in range(3):
        expected = reference.log_probabilities(logits[index])
        order = np.argsort(-logits[index], kind="stable")[:20]
        np.testing.assert_array_equal(top_ids[index], order)
        np.testing.assert_allclose(top[index], expected[order], rtol=0, atol=1e-5)
        np.testing.assert_allclose(chosen[index], expected[token_ids[index]], rtol=0, atol=1e-5)


def test_impossible_tokens_have_no_probability() -> None:
    logits = np.full((1, 5000), -np.inf, np.float32)
    logits[0, [4000, 40]] = [1.0, 1.0]
    chosen, top_ids, top = log_probabilities(
        jnp.asarray(logits), jnp.array([0], jnp.int32), num_top=4
    )
    assert chosen[0] == -np.inf
    assert top_ids[0, :2].tolist() == [40, 4000]
    np.testing.assert_allclose(top[0], [np.log(0.5), np.log(0.5), -np.inf, -np.inf], rtol=1e-6)
    assert np.all(top_ids < 5000)


def test_bad_inputs_are_named() -> None:
    logits = jnp.zeros((2, 50), jnp.float32)
    with pytest.raises(ValueError, match="logits must be float32"):
        draw(logits.astype(jnp.bfloat16), arrays(2))
    with pytest.raises(ValueError, match=r"seed must be \(2, 2\)"):
        draw(logits, arrays(2)._replace(seed=jnp.zeros(2, jnp.uint32)))
    with pytest.raises(
        ValueError, match=r"unknown backend 'abacus'; present: .*triton, triton-interpret.*xla"
    ):
        draw(logits, arrays(2), backend="abacus")
    with pytest.raises(ValueError, match="num_top must be between 1 and 50"):
        log_probabilities(logits, jnp.zeros(2, jnp.int32), num_top=51)
    with pytest.raises(ValueError, match=r"token_ids must be \(2,\)"):
        log_probabilities(logits, jnp.zeros(3, jnp.int32))
