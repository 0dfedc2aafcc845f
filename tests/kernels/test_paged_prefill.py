from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from pallas_kernels.paged_decode import reference as decode_reference
from pallas_kernels.paged_prefill import cases, reference, triton
from pallas_kernels.paged_prefill.api import paged_prefill
from pallas_kernels.paged_prefill.tuning import Tuning, default_tuning
from tests.kernels.op_suite import (
    Interpreted,
    OnGpu,
    PagedPrefillSuite,
    assert_attention,
    ids,
    mean_magnitude,
    named,
    run_reference,
    wrong_outputs,
)

INTERPRETED = {
    "decode rows among them",
    "nothing but padding",
    "pages of one token",
    "pages longer than a block",
    "eight kv heads of 128",
    "heads of 24",
    "heads of 80, float8 pages",
    "window",
    "bfloat16, soft cap and window",
    "float8 pages",
}
SIMULATED = {"decode rows among them", "nothing but padding", "window", "float8 pages"}
"""A simulated TPU takes seconds for each."""


class TestXla(PagedPrefillSuite):
    backend = "xla"


class TestTritonInterpreted(Interpreted, PagedPrefillSuite):
    backend = "triton-interpret"
    rounds_weights = True

    @named(cases.CASES, INTERPRETED)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        super().test_equals_the_reference(case)

    @pytest.mark.parametrize(
        "tuning", [Tuning(dot_rows=128, tile_len=64), Tuning(dot_rows=16, tile_len=16)]
    )
    def test_any_tuning(self, tuning: Tuning) -> None:
        case = next(case for case in cases.CASES if case.name == "decode rows among them")
        inputs = cases.make_inputs(case)
        q, cache, q_start, kv_len, options = inputs
        run = functools.partial(triton.paged_prefill, **options, tuning=tuning, interpret=True)
        self.check(jax.jit(run)(q, *cache, q_start, kv_len), inputs, case)


class TestTpuInterpreted(PagedPrefillSuite):
    backend = "tpu-interpret"
    rounds_weights = True

    @named(cases.CASES, SIMULATED)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        super().test_equals_the_reference(case)

    @pytest.mark.long
    def test_pages_of_a_later_layer(self) -> None:
        super().test_pages_of_a_later_layer()


@pytest.mark.long
class TestTpuInterpretedAtLength(PagedPrefillSuite):
    backend = "tpu-interpret"
    rounds_weights = True


@pytest.mark.gpu
class TestXlaOnGpu(OnGpu, PagedPrefillSuite):
    backend = "xla"


@pytest.mark.gpu
class TestTritonOnGpu(OnGpu, PagedPrefillSuite):
    backend = "triton"
    rounds_weights = True

    @ids(cases.CASES + cases.LARGE_CASES)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        super().test_equals_the_reference(case)


@pytest.mark.parametrize(
    ("q_len", "padding"), [((5, 1, 0, 17, 8), 3), ((0, 0), 9), ((1, 1, 1), 0), ((9, 9, 9), 0)]
)
def test_tiles_hold_every_query_once_but_those_that_decode(
    q_len: tuple[int, ...], padding: int
) -> None:
    tokens_each = 8
    q_start = np.cumsum((0, *q_len)).astype(np.int32)
    kv_len = q_start[1:] - q_start[:-1] + 100
    num_tokens = sum(q_len) + padding
    tiles = np.asarray(triton.tile_map(q_start, kv_len, num_tokens, tokens_each))
    assert np.all((tiles[:, 2] >= 0) & (tiles[:, 2] <= tokens_each))
    used = tiles[tiles[:, 2] > 0]
    assert not tiles[len(used) :, 2].any()
    found = [
        (start + offset, row if position >= 0 else None, position + offset)
        for row, start, count, position in used.tolist()
        for offset in range(count)
    ]
    wanted = [
        (q_start[row] + offset, row, 100 + offset)
        for row, length in enumerate(q_len)
        for offset in range(length if length > 1 else 0)
    ]
    wanted += [(sum(q_len) + offset, None, offset - padding) for offset in range(padding)]
    assert sorted(found) == wanted


def test_tiles_begin_with_those_of_most_keys() -> None:
    """As far as that can be told by ABOUT_KEYS; rows stay together in between."""
    q_len, kv_len = np.array([700, 0, 600, 64]), np.array([700, 0, 1100, 900])
    q_start = np.cumsum([0, *q_len]).astype(np.int32)
    tiles = np.asarray(triton.tile_map(q_start, kv_len, 1400, 32))
    tiles = tiles[tiles[:, 2] > 0]
    row, last = tiles[:, 0], tiles[:, 3] + tiles[:, 2]
    about = -(-np.maximum(last, 0) // triton.ABOUT_KEYS)
    assert np.all(np.diff(about) <= 0)
    assert about[0] == 5 and about[-1] == 0
    for each in range(1, 6):
        assert np.count_nonzero(np.diff(row[about == each])) < len(set(row[about == each]))


def test_what_a_window_hides_does_not_count() -> None:
    """All tiles see about as many keys then, and rows stay together."""
    kv_len = np.array([4000, 3000])
    tiles = np.asarray(triton.tile_map(np.array([0, 640, 1280]), kv_len, 1280, 32, 200))
    row = tiles[tiles[:, 2] > 0, 0]
    assert np.array_equal(row, [1] * 20 + [0] * 20)


@pytest.mark.parametrize(
    ("num_tokens", "dot_rows"), [(256, 64), (1024, 64), (1056, 64), (1088, 128), (8192, 128)]
)
def test_few_queries_are_cut_into_smaller_tiles(num_tokens: int, dot_rows: int) -> None:
    """Heads of Llama 8B: up to 1,056 tokens, tiles of 128 rows would be 264 at most."""
    tuning = default_tuning(head_dim=128, itemsize=2, num_rows=num_tokens * 32)
    assert tuning.dot_rows == dot_rows


@ids(tuple(case for case in cases.CASES if any(case.q_len)))
def test_the_assertion_rejects_wrong_outputs(case: cases.Case) -> None:
    """Also where it is at its most lenient."""
    inputs = cases.make_inputs(case)
    expected = run_reference(inputs, reference.paged_prefill)
    magnitude = mean_magnitude(inputs, reference.paged_prefill)

    def check(out: NDArray[np.float32]) -> None:
        assert_attention(out.astype(inputs.q.dtype), expected, inputs.cache, case.dtype, magnitude)

    check(expected)
    wrongs = wrong_outputs(inputs, reference.paged_prefill)
    if max(case.q_len) > 1:
        wrongs["queries in another order"] = np.roll(expected, 1, axis=0)
    for mistake, wrong in wrongs.items():
        with pytest.raises(AssertionError, match="off by"):
            check(wrong)
            pytest.fail(f"{mistake}: accepted")


def test_the_reference_is_causal_dense_attention() -> None:
    """Against jax's own causal attention, over pages in order."""
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, 5, 4, 2, 16), np.float32)
    q = rng.standard_normal((20, 6, 16), np.float32)
    table = np.arange(5, dtype=np.int32)[None]
    out = reference.paged_prefill(
        q, keys, values, table, np.array([0, 20]), np.array([20]), scale=0.3
    )
    flat = (jnp.asarray(x).reshape(1, 20, 2, 16) for x in (keys, values))
    dense = jax.nn.dot_product_attention(jnp.asarray(q)[None], *flat, scale=0.3, is_causal=True)
    np.testing.assert_allclose(out, dense[0], rtol=0, atol=1e-6)


def test_the_reference_equals_decode_token_by_token() -> None:
    case = cases.Case("", (5, 1), (50, 20), window=33, soft_cap=2.0)
    inputs = cases.make_inputs(case)
    out = run_reference(inputs, reference.paged_prefill)
    for row, index, kv_len in ((0, 0, 46), (0, 3, 49), (0, 4, 50), (1, 5, 20)):
        decoded = decode_reference.paged_decode(
            inputs.q[index : index + 1],
            *inputs.cache[:2],
            inputs.cache.page_table[row : row + 1],
            np.array([kv_len], np.int32),
            **inputs.options,
        )
        np.testing.assert_array_equal(decoded[0], out[index])


def test_bad_inputs_are_named() -> None:
    inputs = cases.make_inputs(cases.CASES[0])
    q, cache, q_start, kv_len, _ = inputs
    with pytest.raises(ValueError, match=r"q_start must be int32 \(2,\)"):
        paged_prefill(*map(jnp.asarray, (q, *cache, kv_len, kv_len)), scale=1.0)
    with pytest.raises(ValueError, match="unknown backend 'abacus'"):
        paged_prefill(*map(jnp.asarray, (q, *cache, q_start, kv_len)), scale=1.0, backend="abacus")
