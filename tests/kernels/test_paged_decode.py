from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from pallas_kernels.kv_write.api import kv_write
from pallas_kernels.paged_cases import PagedCache
from pallas_kernels.paged_decode import cases, reference, triton
from pallas_kernels.paged_decode.api import paged_decode
from pallas_kernels.paged_decode.shared_prefixes import SharedPrefixes
from pallas_kernels.paged_decode.tuning import DEFAULTS, Tuning, default_tuning
from tests.kernels.op_suite import (
    Interpreted,
    OnGpu,
    PagedDecodeSuite,
    assert_attention,
    ids,
    mean_magnitude,
    named,
    run_reference,
    wrong_outputs,
)

INTERPRETED = {
    "uneven rows",
    "pages of one token",
    "pages longer than a block",
    "eight kv heads of 128",
    "heads of 24",
    "heads of 80, float8 pages",
    "window",
    "bfloat16, soft cap and window",
    "float8 pages",
}
SIMULATED = {"eight kv heads of 128", "window", "float8 pages"}
"""A simulated TPU takes seconds for each."""


class TestXla(PagedDecodeSuite):
    backend = "xla"


class TestTritonInterpreted(Interpreted, PagedDecodeSuite):
    backend = "triton-interpret"
    rounds_weights = True

    @named(cases.CASES, INTERPRETED)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        super().test_equals_the_reference(case)

    @pytest.mark.parametrize("num_splits", [1, 16])
    def test_any_number_of_splits(self, num_splits: int) -> None:
        case = next(case for case in cases.CASES if case.name == "uneven rows")
        inputs = cases.make_inputs(case)
        q, cache, kv_len, options = inputs
        tuning = Tuning(tile_len=32, num_splits=num_splits)
        run = functools.partial(triton.paged_decode, **options, tuning=tuning, interpret=True)
        self.check(jax.jit(run)(q, *cache, kv_len), inputs, case)


class TestTpuInterpreted(PagedDecodeSuite):
    backend = "tpu-interpret"
    rounds_weights = True

    @named(cases.CASES, SIMULATED)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        super().test_equals_the_reference(case)

    @pytest.mark.long
    def test_pages_of_a_later_layer(self) -> None:
        super().test_pages_of_a_later_layer()


@pytest.mark.long
class TestTpuInterpretedAtLength(PagedDecodeSuite):
    backend = "tpu-interpret"
    rounds_weights = True


@pytest.mark.gpu
class TestXlaOnGpu(OnGpu, PagedDecodeSuite):
    backend = "xla"


@pytest.mark.gpu
class TestTritonOnGpu(OnGpu, PagedDecodeSuite):
    backend = "triton"
    rounds_weights = True

    @ids(cases.CASES + cases.LARGE_CASES)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        super().test_equals_the_reference(case)


def check_shared(shared: cases.SharedCase, claimed_len: tuple[int, ...], backend: str) -> None:
    inputs = cases.make_shared_inputs(shared)
    starts = jnp.array(shared.pack_start, jnp.int32)
    out = paged_decode(
        inputs.q,
        *inputs.cache,
        inputs.kv_len,
        shared=SharedPrefixes(starts, jnp.array(claimed_len, jnp.int32)),
        backend=backend,
        **inputs.options,
    )
    expected = run_reference(inputs, reference.paged_decode)
    magnitude = mean_magnitude(inputs, reference.paged_decode)
    assert_attention(out, expected, inputs.cache, shared.case.dtype, magnitude)


@pytest.mark.parametrize("backend", ["triton-interpret", "xla"])
@ids(cases.SHARED_CASES)
def test_a_shared_prefix_changes_no_output(case: cases.SharedCase, backend: str) -> None:
    check_shared(case, case.shared_len, backend)


@pytest.mark.gpu
@ids(cases.SHARED_CASES + cases.LARGE_SHARED_CASES)
def test_a_shared_prefix_changes_no_output_on_a_gpu(case: cases.SharedCase) -> None:
    assert jax.default_backend() == "gpu"
    check_shared(case, case.shared_len, "triton")


def test_what_is_said_to_be_shared_is_read_of_the_first_row() -> None:
    """The control: two pages more than the rows have in common."""
    shared = cases.SHARED_CASES[0]
    with pytest.raises(AssertionError, match="off by"):
        check_shared(
            dataclasses.replace(shared, shared_len=(64,)), shared.shared_len, "triton-interpret"
        )


def test_prefixes_go_by_packs_and_without_a_window() -> None:
    inputs = cases.make_inputs(cases.SHARED_CASES[0].case)
    q, cache, kv_len, _ = inputs
    arrays = tuple(map(jnp.asarray, (q, *cache, kv_len)))
    lengths = jnp.zeros(2, jnp.int32)
    for num_starts, window, message in ((2, None, "pack_start must be"), (3, 5, "with a window")):
        shared = SharedPrefixes(jnp.zeros(num_starts, jnp.int32), lengths)
        with pytest.raises(ValueError, match=message):
            paged_decode(*arrays, scale=1.0, shared=shared, window=window)


def test_defaults_split_no_row_beyond_its_tiles() -> None:
    shape = {"kv_heads": 8, "head_dim": 128, "itemsize": 2}
    assert default_tuning(rows=1, max_len=131072, **shape) == DEFAULTS[0][1]
    assert default_tuning(rows=1, max_len=200, **shape).num_splits == 2
    assert default_tuning(rows=1, max_len=1, **shape).num_splits == 1
    assert default_tuning(rows=256, max_len=131072, **shape) == Tuning()
    assert default_tuning(rows=256, max_len=131072, **shape | {"itemsize": 4}).tile_len == 16


@ids(tuple(case for case in cases.CASES if any(case.kv_len)))
def test_the_assertion_rejects_wrong_outputs(case: cases.Case) -> None:
    """Also where it is at its most lenient."""
    inputs = cases.make_inputs(case)
    expected = run_reference(inputs, reference.paged_decode)
    magnitude = mean_magnitude(inputs, reference.paged_decode)

    def check(out: NDArray[np.float32]) -> None:
        assert_attention(out.astype(inputs.q.dtype), expected, inputs.cache, case.dtype, magnitude)

    check(expected)
    for mistake, wrong in wrong_outputs(inputs, reference.paged_decode).items():
        with pytest.raises(AssertionError, match="off by"):
            check(wrong)
            pytest.fail(f"{mistake}: accepted")


def test_the_assertion_rejects_nan() -> None:
    inputs = cases.make_inputs(cases.CASES[0])
    expected = run_reference(inputs, reference.paged_decode)
    wrong = expected.copy()
    wrong[0, 0, 0] = np.nan
    with pytest.raises(AssertionError, match="off by"):
        assert_attention(wrong, expected, inputs.cache, "float32")


def test_the_reference_equals_dense_attention() -> None:
    """Against jax's own attention over a cache of one page per token in order."""
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, 20, 1, 2, 16), np.float32)
    q = rng.standard_normal((1, 6, 16), np.float32)
    cache = PagedCache(keys, values, np.arange(20, dtype=np.int32)[None])
    out = reference.paged_decode(q, *cache, np.array([20], np.int32), scale=0.3)
    dense = jax.nn.dot_product_attention(
        jnp.asarray(q)[None], *(jnp.asarray(x)[None, :, 0] for x in (keys, values)), scale=0.3
    )
    np.testing.assert_allclose(out, dense[0], rtol=0, atol=1e-6)


def test_the_reference_by_hand() -> None:
    """Scores 0 and ln 3 weigh values 4 and 8 as 1 to 3; a window of one leaves the second."""
    keys = np.array([0.0, np.log(3.0)], np.float32).reshape(2, 1, 1, 1)
    values = np.array([4.0, 8.0], np.float32).reshape(2, 1, 1, 1)
    table, length, q = np.array([[0, 1]]), np.array([2]), np.ones((1, 1, 1), np.float32)
    run = lambda **options: reference.paged_decode(  # noqa: E731
        q, keys, values, table, length, scale=1.0, **options
    ).item()
    assert run() == pytest.approx(7.0)
    assert run(window=1) == 8.0
    # A cap of 1 squashes ln 3 to tanh(ln 3) = 0.8.
    assert run(soft_cap=1.0) == pytest.approx((4 + 8 * np.exp(0.8)) / (1 + np.exp(0.8)))


def test_bad_inputs_are_named() -> None:
    inputs = cases.make_inputs(cases.CASES[1])
    q, (k_pages, v_pages, table), kv_len, _ = inputs
    good = (q, k_pages, v_pages, table, kv_len)

    def refused(index: int, bad: object, message: str) -> None:
        arguments = [bad if place == index else array for place, array in enumerate(good)]
        with pytest.raises(ValueError, match=message):
            paged_decode(*map(jnp.asarray, arguments), scale=1.0)

    refused(0, q[0], "q must be")
    refused(0, q[:, :8], "8 query heads do not divide among 3")
    refused(0, q[..., :32], "head_dim 32")
    refused(0, np.repeat(q, 2, axis=0), "q has 2 rows")
    refused(1, k_pages[0], "k_pages must be")
    refused(2, v_pages[:-1], "v_pages")
    refused(3, table.astype(np.float32), "page_table must be int32")
    refused(4, kv_len.astype(np.uint32), "kv_len must be int32")
    for options, message in (
        ({"window": 0}, "window"),
        ({"soft_cap": 0.0}, "soft_cap"),
        (
            {"backend": "abacus"},
            "unknown backend 'abacus'; present: .*triton, triton-interpret.*xla",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            paged_decode(*map(jnp.asarray, good), scale=1.0, **options)


def test_what_triton_cannot_address_is_named() -> None:
    def lower(shape: tuple[int, ...], dtype: Any) -> None:
        head_dim = shape[3]
        pages = jax.ShapeDtypeStruct(shape, dtype)
        q = jax.ShapeDtypeStruct((1, shape[2], head_dim), jnp.bfloat16)
        table, kv_len = (jax.ShapeDtypeStruct(size, jnp.int32) for size in ((1, 4), (1,)))
        run = functools.partial(paged_decode, scale=1.0, backend="triton-interpret")
        jax.eval_shape(run, q, pages, pages, table, kv_len)

    with pytest.raises(ValueError, match="head_dim from 16 to 256, not 576"):
        lower((4, 16, 8, 576), jnp.bfloat16)
    with pytest.raises(ValueError, match="cannot address float8_e4m3fn pages of 2 to 4 GiB"):
        lower((3 * 2**16, 16, 8, 128), jnp.float8_e4m3fn)
    lower((2**17, 16, 8, 128), jnp.bfloat16)


@pytest.mark.gpu
def test_pages_beyond_four_gibibytes() -> None:
    """Written and read where neither elements nor bytes can be counted in 32 bits."""
    assert jax.default_backend() == "gpu"
    case = cases.Case("", (90, 20, 0, 64), 16, 8, 8, 128, "bfloat16")
    inputs = cases.make_inputs(case)
    first_page, num_pages = 160_000, len(inputs.cache.k_pages)
    cache_shape = (first_page + num_pages, *inputs.cache.k_pages.shape[1:])
    assert np.prod(cache_shape) > 2**31

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(k_pages: jax.Array, v_pages: jax.Array) -> Any:
        token = jnp.arange(num_pages * case.page_size, dtype=jnp.int32)
        new = (jnp.asarray(pages).reshape(-1, *cache_shape[2:]) for pages in inputs.cache[:2])
        place = first_page + token // case.page_size, token % case.page_size
        k_pages, v_pages = kv_write(k_pages, v_pages, *new, *place)
        table, shift = inputs.cache.page_table, jnp.int32(first_page)
        how: dict[str, Any] = {**inputs.options, "first_page": shift, "backend": "triton"}
        out = paged_decode(inputs.q, k_pages, v_pages, table, inputs.kv_len, **how)
        return k_pages, v_pages, out

    pages = [jnp.zeros(cache_shape, jnp.bfloat16) for _ in "kv"]
    *pages, out = step(*pages)
    expected = run_reference(inputs, reference.paged_decode)
    magnitude = mean_magnitude(inputs, reference.paged_decode)
    assert_attention(out, expected, inputs.cache, case.dtype, magnitude)
    assert not any(jnp.any(each[:first_page]) for each in pages)
